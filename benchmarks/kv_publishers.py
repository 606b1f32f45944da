"""Publishers of KV events for many servers in one process, fast enough for half a million blocks a second.

    python -m benchmarks.kv_publishers --publishers 64 --rate 500000 --port 5557 --figures FILE

Publisher n binds the n-th address of `benchmarks.endpoints` with `--port`, and replays at the port after it. They
publish the prompts that the load generator asks for (`--ids 1024`), each one of them. The process prints the port, and
SIGUSR1 starts and stops the storm. What it has sent it writes to `--figures`, five times a second.

Messages are vLLM 0.24's: a map per event, 16 blocks of 16 tokens, four events that make one prompt of 64 blocks each.
They are encoded once; before each lap the hashes, the first token of every prompt and the time are written over where
they stand, so that every message has new blocks. A PUB socket with vLLM's limit drops the newest when the picker does
not read, and the last 1 000 messages of each publisher can be replayed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import time
from collections import deque
from pathlib import Path

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from benchmarks.endpoints import addresses

BLOCK_SIZE = 16
RUN = 16
EVENTS = 4
BLOCKS = RUN * EVENTS
"""Blocks of a prompt and of a message."""

RING = 16  # messages per publisher and lap
HWM = 100_000
BUFFER = 1000
PAUSE = 0.002
VARIANTS = 32
"""Prompts of the load generator."""

_END = b"\xff" * 8
_FIRST_TOKEN = 1 << 16  # tokens from here on take 5 bytes each, hashes from 2^63 on 9
_TOKENS = 1 << 16
_PIECE = 65536  # a lap's number in a hash or a token: that many laps are different


def message(hashes: list[int], tokens: NDArray[np.uint32]) -> bytes:
    """One batch: a prompt of 64 blocks in four events."""
    events = [
        {
            "type": "BlockStored",
            "block_hashes": hashes[begin : begin + RUN],
            "parent_block_hash": hashes[begin - 1] if begin else None,
            "token_ids": tokens[begin * BLOCK_SIZE : (begin + RUN) * BLOCK_SIZE].tolist(),
            "block_size": BLOCK_SIZE,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }
        for begin in range(0, BLOCKS, RUN)
    ]
    return msgspec.msgpack.encode([time.time(), events, 0])


def load_prompt(variant: int, tokens: int) -> NDArray[np.uint32]:
    """What `extproc-load --ids` sends: `std::mt19937`, five digits each, the first half shared by four."""
    parts = ((variant // 4, tokens // 2), (1000 + variant, tokens - tokens // 2))
    words = [np.random.RandomState(seed).randint(0, 1 << 32, count, dtype=np.uint32) for seed, count in parts]
    return (np.concatenate(words) % 90_000 + 10_000).astype(np.uint32)


class Ring:
    """The messages of one lap of one publisher, and where in them the lap's number goes."""

    def __init__(self, rng: np.random.Generator) -> None:
        messages: list[bytes] = []
        places: list[int] = []
        for _ in range(RING):
            hashes = (
                (rng.integers(0, 1 << 47, BLOCKS, dtype=np.uint64) << np.uint64(16)) | np.uint64(1 << 63)
            ).tolist()
            tokens = rng.integers(_FIRST_TOKEN, _FIRST_TOKEN + _TOKENS, BLOCKS * BLOCK_SIZE, dtype=np.uint32)
            data = message(hashes, tokens)
            messages.append(data)
            if not places:
                named = [*hashes, *(hashes[n - 1] for n in range(RUN, BLOCKS, RUN))]
                at = 0
                for number in sorted(set(named)):
                    needle = b"\xcf" + struct.pack(">Q", number)
                    at = data.find(needle)
                    while at >= 0:
                        places.append(at + 7)  # its last two bytes, which are 0
                        at = data.find(needle, at + 1)
                assert len(places) == BLOCKS + EVENTS - 1
                first = data.index(b"\xce" + struct.pack(">I", int(tokens[0])))
                places.append(first + 3)
        if len({len(data) for data in messages}) != 1:
            raise AssertionError("messages of different lengths")
        self._bytes = np.frombuffer(bytearray(b"".join(messages)), dtype=np.uint8).reshape(RING, -1)
        self._places = np.array(places)

    def begin(self, lap: int) -> None:
        """Make all messages new ones."""
        self._bytes[:, self._places] = lap >> 8 & 0xFF
        self._bytes[:, self._places + 1] = lap & 0xFF

    def payload(self, number: int) -> bytes:
        """A message, with the time as it is now."""
        row = self._bytes[number]
        row[2:10] = np.frombuffer(struct.pack(">d", time.time()), dtype=np.uint8)
        payload: bytes = row.tobytes()
        return payload


class Publisher:
    """One server's PUB and ROUTER."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, port: int, seed: int) -> None:
        self.sent = self.replays = 0
        self._ring = Ring(np.random.default_rng(seed))
        self._topic = f"kv@{address}@m".encode()
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=BUFFER)
        self._pub = context.socket(zmq.PUB)
        self._pub.set_hwm(HWM)
        self._pub.bind(f"tcp://{address}:{port}")
        self.router = context.socket(zmq.ROUTER)
        self.router.set_hwm(0)
        self.router.bind(f"tcp://{address}:{port + 1}")
        self._storm = 0

    def storm(self) -> None:
        """The next message of the storm."""
        lap, number = divmod(self._storm, RING)
        if number == 0:
            self._ring.begin(lap % _PIECE)
        self._storm += 1
        self.publish(self._ring.payload(number))

    def publish(self, payload: bytes) -> None:
        """Send, and keep for replays."""
        number = struct.pack(">Q", self.sent)
        self.sent += 1
        self._buffer.append((number, payload))
        self._pub.send_multipart((self._topic, number, payload), zmq.NOBLOCK)

    def answer(self) -> None:
        """A request for a replay, if there is one."""
        try:
            frames = self.router.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) != 3 or len(frames[2]) != 8:
            return
        self.replays += 1
        start = int.from_bytes(frames[2], "big")
        for number, payload in list(self._buffer):
            if int.from_bytes(number, "big") >= start:
                self.router.send_multipart((frames[0], b"", self._topic, number, payload))
        self.router.send_multipart((frames[0], b"", b"", _END, b""))


def run(publishers: list[Publisher], rate: float, figures: Path) -> None:
    """Publish until the process is ended; SIGUSR1 starts and stops the storm."""
    on = False

    def toggle(_signal: int, _frame: object) -> None:
        nonlocal on
        on = not on

    signal.signal(signal.SIGUSR1, toggle)
    poller = zmq.Poller()
    for publisher in publishers:
        poller.register(publisher.router, zmq.POLLIN)
    owner = {publisher.router: publisher for publisher in publishers}
    interval = BLOCKS / rate
    due, turn, written = time.monotonic(), 0, 0.0
    while True:
        now = time.monotonic()
        if not on:
            due = now
        while due < now and on:
            publishers[turn % len(publishers)].storm()
            turn += 1
            due += interval
            if turn % 256 == 0:
                now = time.monotonic()
                if now - due > 1.0:  # this machine is too slow for the rate, which the figures show
                    due = now
        if now - written >= 0.2:
            written = now
            write(figures, publishers)
        for router, _ in poller.poll(0):
            owner[router].answer()
        time.sleep(PAUSE)


def write(path: Path, publishers: list[Publisher]) -> None:
    """What has been sent so far, whole or not at all."""
    sent = sum(publisher.sent for publisher in publishers)
    replays = sum(publisher.replays for publisher in publishers)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"messages": sent, "blocks": sent * BLOCKS, "replays": replays}))
    os.replace(fresh, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publishers", type=int, default=64)
    parser.add_argument("--rate", type=float, default=500_000.0, help="blocks per second, all publishers together")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--figures", type=Path, required=True)
    options = parser.parse_args()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
    context.set(zmq.MAX_SOCKETS, 4096)
    publishers = [
        Publisher(context, address, options.port, seed) for seed, address in enumerate(addresses(options.publishers))
    ]
    for variant in range(VARIANTS):
        halves = [np.random.default_rng((1 << 20) + seed) for seed in (variant // 4, 1000 + variant)]
        hashes = np.concatenate([rng.integers(1, 1 << 63, BLOCKS // 2, dtype=np.uint64) for rng in halves]).tolist()
        payload = message(hashes, load_prompt(variant, BLOCKS * BLOCK_SIZE))
        publishers[variant % len(publishers)].publish(payload)
    write(options.figures, publishers)
    print(options.port, flush=True)
    run(publishers, options.rate, options.figures)


if __name__ == "__main__":
    main()
