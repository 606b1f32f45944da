"""A server's publisher of KV events as a process of its own, to be killed: PORT REPLAY_PORT MODE. It prints `ready`.

MODE `steady`: a prompt of 16 blocks every 20 ms, all kept for replays. `endless`: new prompts as fast as it can.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec
import numpy as np
import zmq

BLOCKS = 16
SIZE = 16
ENDLESS_BLOCKS = 256


def main() -> None:
    """Publish until killed."""
    port, replay_port, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if mode == "endless":
        os.nice(5)  # it floods the picker, not the machine
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.set_hwm(100_000 if mode == "steady" else 1000)
    pub.bind(f"tcp://127.0.0.1:{port}")
    router = context.socket(zmq.ROUTER)
    router.set_hwm(0)  # a whole replay at once, however slowly it is read
    router.bind(f"tcp://127.0.0.1:{replay_port}")
    rng = np.random.default_rng(port)
    kept: list[tuple[bytes, bytes]] = []
    print("ready", flush=True)
    seq = 0
    while True:
        while router.poll(0):
            client, _, start = router.recv_multipart()
            for number, payload in kept:
                if number >= start:
                    router.send_multipart([client, b"", b"kv@server@m", number, payload])
            router.send_multipart([client, b"", b"", b"\xff" * 8, b""])
        blocks = BLOCKS if mode == "steady" else ENDLESS_BLOCKS
        event = {
            "type": "BlockStored",
            "block_hashes": rng.integers(1, 1 << 63, blocks).tolist(),
            "parent_block_hash": None,
            "token_ids": rng.integers(0, 100_000, blocks * SIZE).tolist(),
            "block_size": SIZE,
        }
        kept = [*kept[-1000:], (seq.to_bytes(8, "big"), msgspec.msgpack.encode([time.time(), [event], 0]))]
        pub.send_multipart([b"kv@server@m", *kept[-1]])
        seq += 1
        if mode == "steady":
            time.sleep(0.02)


if __name__ == "__main__":
    main()
