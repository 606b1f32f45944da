"""nghttp2, the HTTP/2 stack inside Envoy, curl and many others, as the client of both transports.

The client is the load generator of the benchmarks: it plays Envoy's side of ext_proc and checks every reply.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from benchmarks.load.generator import Load, measure
from epp.extproc import ext_proc_pb2 as pb
from epp.transport.call import Call, CloseReason
from epp.transport.certificates import self_signed
from epp.transport.grpcio_server import GrpcioServer, GrpcioTls
from epp.transport.server import Server
from epp.transport.tls import ServerTlsFactory, server_context

NOW = datetime.now(UTC)
METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


class Picker:
    """Picks the same endpoint for every request and echoes all bodies."""

    def __init__(self, call: Call, ends: list[CloseReason]) -> None:
        self.call, self.ends = call, ends
        self.body = b""

    def receive(self, message: bytes) -> None:
        asked = pb.ProcessingRequest.FromString(message)
        kind = asked.WhichOneof("request")
        answer = pb.ProcessingResponse()
        if kind == "request_body":
            self.body += asked.request_body.body
            if asked.request_body.end_of_stream:
                picked = pb.ProcessingResponse()
                option = picked.request_headers.response.header_mutation.set_headers.add()
                option.header.key, option.header.raw_value = "x-gateway-destination-endpoint", b"10.0.0.1:8000"
                self.call.send(picked.SerializeToString())
                for start in range(0, len(self.body), 62_000):
                    end = start + 62_000 >= len(self.body)
                    self.echo(answer.request_body, self.body[start : start + 62_000], end)
                    self.call.send(answer.SerializeToString())
        elif kind == "response_headers":
            answer.response_headers.response.SetInParent()
            self.call.send(answer.SerializeToString())
        elif kind == "response_body":
            self.echo(answer.response_body, asked.response_body.body, asked.response_body.end_of_stream)
            self.call.send(answer.SerializeToString())

    @staticmethod
    def echo(into: Any, body: bytes, end: bool) -> None:
        streamed = into.response.body_mutation.streamed_response
        streamed.body, streamed.end_of_stream = body, end

    def half_closed(self) -> None:
        self.call.finish()

    def closed(self, reason: CloseReason) -> None:
        self.ends.append(reason)


@asynccontextmanager
async def serving(kind: str, *, tls: bool) -> AsyncIterator[tuple[Server | GrpcioServer, int, list[CloseReason]]]:
    ends: list[CloseReason] = []
    handlers = {METHOD: lambda call: Picker(call, ends)}
    server: Server | GrpcioServer
    if kind == "own":
        server = Server(handlers, tls=ServerTlsFactory(lambda: server_context(None, now=NOW)) if tls else None)
    else:
        pair = self_signed(NOW)
        server = GrpcioServer(handlers, tls=GrpcioTls(lambda: pair) if tls else None)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port, ends
    finally:
        await server.close()
        assert server.stats.streams == 0


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
@pytest.mark.parametrize("kind", ["own", "grpcio"])
@pytest.mark.parametrize(("body", "chunks"), [(500, 0), (4096, 20), (450_000, 3)])
async def test_every_stream_gets_its_right_replies(kind: str, tls: bool, body: int, chunks: int) -> None:
    load = Load(body=body, chunks=chunks, streams=16, warm_up=0, seconds=60, once=100, tls=tls)
    async with serving(kind, tls=tls) as (server, port, ends):
        seen = await measure(load, port, os.getpid())
        assert (seen["started"], seen["streams"], seen["errs"], seen["live"]) == (100, 100, 0, 0)
        assert server.stats.streams_total == 100
        await eventually(lambda: len(ends) == 100)


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
async def test_streams_and_connections_that_go_away(tls: bool) -> None:
    """Half of the streams are reset on their way and connections are cut; the others lose nothing."""
    load = Load(chunks=20, streams=32, warm_up=0, seconds=2, reset=0.5, disconnect=10, tls=tls)
    async with serving("own", tls=tls) as (server, port, ends):
        seen = await measure(load, port, os.getpid())
        assert seen["errs"] == 0
        assert seen["resets"] > 10
        assert seen["disconnects"] > 1
        await eventually(lambda: server.stats.streams == 0 and len(ends) == server.stats.streams_total)
        assert isinstance(server, Server)
        assert server.stats.buffered == 0
        assert server.stats.errors_by_code == {}
        assert server.stats.limits_hit == {}


async def eventually(condition: Callable[[], bool]) -> None:
    """Yield to the loop until it holds; the test's own timeout ends what never does."""
    while not condition():  # noqa: ASYNC110 - the streams have no event for each of these
        await asyncio.sleep(0.01)
