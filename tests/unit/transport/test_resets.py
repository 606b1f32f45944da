"""A gateway that resets every stream, for days: Envoy does so with nearly every ext_proc stream that has finished."""

from __future__ import annotations

import asyncio
import gc
import struct
import sys
from collections import Counter

import hpack

from epp.transport import frames as f
from epp.transport.call import Call, CloseReason
from epp.transport.server import Server

RESETS = 100_000
BATCH = 500
WARM = 20_000  # tables that remember something are full
BLOCK = hpack.Encoder().encode(
    [
        (":method", "POST"), (":scheme", "http"), (":path", "/t/Echo"), (":authority", "x"),
        ("content-type", "application/grpc"), ("te", "trailers"),
    ]
)  # fmt: skip
OPEN = f.frame_header(len(BLOCK), f.HEADERS, f.END_HEADERS, 0)[:5]


async def test_a_hundred_thousand_resets_on_one_connection() -> None:
    """Every call is answered and told of its end, nothing is kept, and nobody is sent away."""
    reasons: Counter[CloseReason] = Counter()

    class Echo:
        """Finishes when the client has."""

        def __init__(self, call: Call) -> None:
            self.call = call

        def receive(self, message: bytes) -> None:
            self.call.send(message)

        def half_closed(self) -> None:
            self.call.finish()

        def closed(self, reason: CloseReason) -> None:
            reasons[reason] += 1

    server = Server({"/t/Echo": Echo})
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f.PREFACE + f.settings({}) + f.window_update(0, f.MAX_WINDOW - f.DEFAULT_WINDOW))
    rest = b""
    echoed = finished = blocks = 0

    async def answers(count: int, ends: int) -> None:
        """Read until so many more echoes and trailers have come."""
        nonlocal rest, echoed, finished
        count, ends = count + echoed, ends + finished
        while echoed < count or finished < ends:
            chunk = await reader.read(1 << 16)
            assert chunk, "the server closed the connection"
            rest += chunk
            start = 0
            while len(rest) - start >= 9:
                word, flags, stream = struct.unpack_from("!IBI", rest, start)
                stop = start + 9 + (word >> 8)
                if stop > len(rest):
                    break
                kind = word & 255
                assert kind != f.GOAWAY
                if kind == f.DATA:
                    assert rest[start + 9 : stop] == b"\0\0\0\0\4" + stream.to_bytes(4, "big")
                    echoed += 1
                elif kind == f.HEADERS and flags & f.END_STREAM:
                    finished += 1
                start = stop
            rest = rest[start:]

    for first in range(1, 2 * RESETS, 2 * BATCH):
        out = []
        for stream in range(first, first + 2 * BATCH, 2):
            number = stream.to_bytes(4, "big")
            last = f.END_STREAM if stream % 4 == 1 else 0  # every second one has ended before it is reset
            out += [OPEN, number, BLOCK, f.frame_header(9, f.DATA, last, stream), b"\0\0\0\0\4", number]
        writer.write(b"".join(out))
        await answers(BATCH, BATCH // 2)
        writer.write(b"".join(f.rst_stream(stream, 8) for stream in range(first, first + 2 * BATCH, 2)))
        if first // 2 == WARM:
            gc.collect()
            blocks = sys.getallocatedblocks()
    while server.stats.streams:  # noqa: ASYNC110 - the last resets are under way
        await asyncio.sleep(0.01)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 5000
    assert reasons == {CloseReason.FINISHED: RESETS // 2, CloseReason.RESET: RESETS // 2}
    assert server.stats.streams_total == RESETS
    assert (server.stats.protocol_errors, server.stats.limits_hit, server.stats.buffered) == (0, {}, 0)
    writer.close()
    await server.close()
