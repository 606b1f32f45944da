"""Any bytes at all into a connection: no crash, no hang, no memory that stays.

    python tests/fuzz/transport_fuzz.py -max_total_time=600      # guided by coverage, needs atheris
    python tests/fuzz/transport_fuzz.py --random 20              # seconds of random conversations, needs nothing

`conversation` makes frames out of the bytes, so that most inputs get past the preface and into the state machine; raw
bytes are fed too. What must hold after each is in `run`.
"""

from __future__ import annotations

import importlib
import logging
import random
import struct
import sys
import time

GUIDED = __name__ == "__main__" and "--random" not in sys.argv
if GUIDED:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is missing: pip install atheris (--random goes without it)")

    with atheris.instrument_imports(include=["epp.transport", "hpack"]):  # before they are imported plain
        importlib.import_module("epp.transport.connection")

import hpack  # noqa: E402

from epp.transport import frames as f  # noqa: E402
from epp.transport.call import Call, CloseReason  # noqa: E402
from epp.transport.connection import Connection  # noqa: E402
from epp.transport.limits import Limits, TransportStats  # noqa: E402

LIMITS = Limits(
    concurrent_streams=20,
    stream_window=65_535,
    connection_window=100_000,
    message=50_000,
    unread=120_000,
    buffered_server=400_000,
    unsent_stream=20_000,
    unsent_connection=50_000,
    burst=30_000,
    header_list=4_000,
    headers=40,
    header_block=10_000,
    nuisance=3_000,
    nuisance_per_second=0,
)
REQUEST = [
    (":method", "POST"), (":scheme", "http"), (":path", "/t/Any"), (":authority", "x"),
    ("content-type", "application/grpc"), ("te", "trailers"),
]  # fmt: skip
VARIANTS = [
    REQUEST,
    [*REQUEST, ("grpc-encoding", "gzip")],
    [*REQUEST, ("grpc-timeout", "10S")],
    [*REQUEST, ("content-length", "20")],
    [*REQUEST, ("Upper", "case")],
    [*REQUEST[:2], (":path", "/t/Nobody"), *REQUEST[3:]],
    [*REQUEST, ("x-large", "y" * 5000)],
    [("x", "trailer")],
]


class Erratic:
    """A handler whose doings depend on what it gets: replies, large ones, an end, an error."""

    def __init__(self, call: Call, open_calls: set[Erratic]) -> None:
        self.call = call
        self.open = open_calls
        self.open.add(self)

    def receive(self, message: bytes) -> None:
        assert self in self.open, "a message after the end"
        what = message[0] % 8 if message else 0
        if what < 3:
            self.call.send(message)
        elif what == 3:
            self.call.send(message * 7)
        elif what == 4:
            self.call.finish(len(message) % 17, "done")
        elif what == 5:
            self.call.abort(8, "\u00fc" * len(message))
        elif what == 6:
            raise ValueError("a handler with a bug")

    def half_closed(self) -> None:
        assert self in self.open, "half closed after the end"
        self.call.finish()

    def closed(self, reason: CloseReason) -> None:
        self.open.remove(self)  # KeyError: closed twice


class Timer:
    """Never rings by itself."""

    def cancel(self) -> None:
        pass


def conversation(data: bytes) -> bytes:
    """Frames out of bytes: two bytes choose a frame, the next ones are its content."""
    encoder = hpack.Encoder()
    out = [f.PREFACE, f.settings({})]
    position = 0
    top = -1
    while position + 2 <= len(data):
        choice, detail = data[position], data[position + 1]
        position += 2
        stream = max(1, top if detail & 1 else top - 2 * (detail >> 5))
        content = data[position : position + (detail & 63)]
        kind = choice % 16
        if kind < 4:
            position += len(content)
            flags = choice >> 4 & f.END_STREAM
            large = content * (1 + (choice >> 5) * 40)
            body = struct.pack("!BI", 0, len(large)) + large if kind < 3 else large
            for start in range(0, len(body), 16_384):
                piece = body[start : start + 16_384]
                out.append(f.frame_header(len(piece), f.DATA, flags, stream) + piece)
        elif kind < 7:
            top += 2
            block = encoder.encode(VARIANTS[(choice >> 4) % 8 if kind == 6 else 0])
            out.append(f.frame_header(len(block), f.HEADERS, f.END_HEADERS | (detail & 1), top) + block)
        elif kind == 7:
            out.append(f.window_update(stream if choice & 16 else 0, 1 + detail * 300))
        elif kind == 8:
            out.append(f.rst_stream(stream, detail % 14))
        elif kind == 9:
            out.append(f.settings({choice >> 4 & 7: detail * 1000}))
        elif kind == 10:
            out.append(f.frame_header(8, f.PING, choice >> 4 & 1, 0) + b"draining")
        elif kind == 11:
            position += len(content)
            out.append(f.frame_header(len(content), choice >> 4, detail, stream) + content)
        elif kind == 12:
            block = encoder.encode(VARIANTS[detail % 8])
            half = len(block) // 2
            top += 2
            out.append(f.frame_header(half, f.HEADERS, detail >> 7, top) + block[:half])
            out.append(f.frame_header(len(block) - half, f.CONTINUATION, f.END_HEADERS, top) + block[half:])
        elif kind == 13:
            position += len(content)
            out.append(content)
        elif kind == 14:
            block = encoder.encode(VARIANTS[7])
            out.append(f.frame_header(len(block), f.HEADERS, f.END_HEADERS | f.END_STREAM, stream) + block)
        else:
            out.append(f.frame_header(4, f.PRIORITY, 0, stream) + bytes(4))
    return b"".join(out)


def run(wire: bytes, cut: int) -> Connection:
    """Feed it in pieces of `cut` bytes, then end it; everything that was begun has ended, and nothing is kept."""
    stats = TransportStats()
    open_calls: set[Erratic] = set()
    connection = Connection(
        {"/t/Any": lambda call: Erratic(call, open_calls)},
        limits=LIMITS,
        stats=stats,
        clock=lambda: 0.0,
        call_later=lambda _seconds, _ring: Timer(),
        wake=lambda: None,
    )
    said = 0
    for index, start in enumerate(range(0, len(wire), cut)):
        connection.receive(wire[start : start + cut])
        if index % 3 == 0:
            said += len(connection.take())
        if index % 7 == 5:
            connection.outbox.set_writable(index % 2 == 0)
        if index % 97 == 96:
            connection.drain()
        assert stats.buffered <= LIMITS.buffered_server + 400_000
        assert len(connection.streams) == stats.streams <= LIMITS.concurrent_streams
    connection.outbox.set_writable(True)
    said += len(connection.take())
    assert said <= 100_000 + 100 * len(wire) + 8 * 100_000, "answers out of proportion"
    connection.lost()
    assert connection.take() is not None
    assert not open_calls, "a call was never told that it ended"
    assert (stats.streams, stats.buffered, connection.outbox.unsent) == (0, 0, 0)
    return connection


def one_input(data: bytes) -> None:
    """The first byte chooses raw bytes or frames, and how they are cut."""
    if not data:
        return
    how, data = data[0], data[1:]
    wire = data if how & 1 else conversation(data)
    run(wire, max((1, 13, 1000, 1 << 20)[how >> 1 & 3], len(wire) // 500))


WORK = (0, 0, 1, 2, 3, 4, 4, 6, 7, 7, 8, 12)
ANYTHING = range(16)


def random_input(rng: random.Random) -> bytes:
    """Mostly openings, messages and windows; sometimes nothing but noise."""
    if rng.random() < 0.1:
        return bytes((1 | rng.randrange(4) << 1,)) + f.PREFACE + f.settings({}) + rng.randbytes(rng.randrange(300))
    out = bytearray((rng.randrange(4) << 1,))
    for _ in range(rng.randrange(80)):
        kind = rng.choice(ANYTHING if rng.random() < 0.3 else WORK)
        out += bytes((kind | rng.randrange(16) << 4, rng.randrange(256)))
        out += rng.randbytes(rng.randrange(64))
    return bytes(out)


def main() -> None:
    """See the module."""
    if "--random" in sys.argv:
        rng = random.Random()
        end = time.monotonic() + float(sys.argv[sys.argv.index("--random") + 1])
        count = 0
        while time.monotonic() < end:
            data = random_input(rng)
            try:
                one_input(data)
            except BaseException:
                print("input:", data.hex())
                raise
            count += 1
        print(f"{count} conversations")
        return
    atheris.instrument_func(one_input)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main()
