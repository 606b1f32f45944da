"""The reference stack serving our handlers: every kind of end, backpressure, TLS and drain, with grpcio as client."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from grpc import aio

from epp.transport.call import Call, CloseReason, Handler
from epp.transport.certificates import self_signed
from epp.transport.grpcio_server import GrpcioServer, GrpcioTls, grpcio_tls
from epp.transport.limits import Limits

NOW = datetime.now(UTC)


class Echo:
    """Answers every message, counts, and finishes when the client has."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.reasons: list[CloseReason] = []
        self.ended = asyncio.Event()
        self.received: list[bytes] = []

    def receive(self, message: bytes) -> None:
        self.received.append(message)
        match message:
            case b"abort":
                self.call.send(b"never seen")
                self.call.abort(8, "too much")
                self.call.abort(9, "again")
            case b"finish":
                self.call.send(b"last")
                self.call.finish(3, "enough")
                self.call.finish(0)
                self.call.send(b"ignored")
            case b"raise":
                raise RuntimeError("boom")
            case _:
                self.call.send(message)

    def half_closed(self) -> None:
        self.call.finish()

    def closed(self, reason: CloseReason) -> None:
        self.reasons.append(reason)
        self.ended.set()


class Echoes(list[Echo]):
    """A handler that remembers its streams."""

    def __call__(self, call: Call) -> Echo:
        self.append(Echo(call))
        return self[-1]


@asynccontextmanager
async def serving(handlers: Mapping[str, Handler], **options: Any) -> AsyncIterator[tuple[GrpcioServer, int]]:
    server = GrpcioServer(handlers, **options)
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.close()


@asynccontextmanager
async def calling(port: int, *, path: str = "/t/Echo", **options: Any) -> AsyncIterator[Any]:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_stream(path)(**options)


async def test_messages_metadata_and_the_end() -> None:
    echoes = Echoes()
    async with (
        serving({"/t/Echo": echoes}) as (_, port),
        calling(port, metadata=(("x-a", "b"), ("y-bin", b"\0"))) as call,
    ):
        for i in range(50):
            await call.write(b"m%d" % i)
            assert await call.read() == b"m%d" % i
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    (echo,) = echoes
    assert echo.reasons == [CloseReason.FINISHED]
    assert (b"x-a", b"b") in echo.call.metadata
    assert (b"y-bin", b"\0") in echo.call.metadata
    assert echo.call.path == "/t/Echo"
    assert "127.0.0.1" in echo.call.peer


async def test_finish_and_abort_before_the_client_is_done() -> None:
    echoes = Echoes()
    async with serving({"/t/Echo": echoes}) as (_, port):
        async with calling(port) as call:
            await call.write(b"finish")
            assert await call.read() == b"last"
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert await call.details() == "enough"
        async with calling(port) as call:
            await call.write(b"abort")
            with pytest.raises(aio.AioRpcError):
                await call.read()
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert [echo.reasons for echo in echoes] == [[CloseReason.FINISHED], [CloseReason.ABORTED]]


async def test_a_client_that_goes_away() -> None:
    echoes: list[Echo] = []

    class Waiting(Echo):
        """Does not finish when the client has: a reset may look like that at first."""

        def __init__(self, call: Call) -> None:
            super().__init__(call)
            echoes.append(self)

        def half_closed(self) -> None:
            pass

    async with serving({"/t/Echo": Waiting}) as (_, port):
        async with calling(port) as call:
            await call.write(b"a")
            await call.read()
            call.cancel()
        await asyncio.wait_for(echoes[0].ended.wait(), 10)
    assert echoes[0].reasons == [CloseReason.RESET]


async def test_a_failing_handler_ends_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken(call: Call) -> Echo:
        raise RuntimeError("no stream")

    echoes = Echoes()
    async with serving({"/t/Echo": echoes, "/t/Broken": broken}) as (server, port):
        async with calling(port) as good, calling(port) as bad:
            await good.write(b"a")
            await bad.write(b"raise")
            assert await bad.code() is grpc.StatusCode.INTERNAL
            assert await good.read() == b"a"
        async with calling(port, path="/t/Broken") as call:
            assert await call.code() is grpc.StatusCode.INTERNAL
        async with calling(port, path="/t/Unknown") as call:
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert server.stats.handler_errors == 2
    assert "boom" in caplog.text


async def test_a_handler_that_fails_in_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Echo):
        def closed(self, reason: CloseReason) -> None:
            raise RuntimeError("in closed")

    async with serving({"/t/Echo": Failing}) as (server, port), calling(port) as call:
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
    assert server.stats.handler_errors == 1
    assert "in closed" in caplog.text


async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    echoes = Echoes()
    piece = bytes(64 << 10)
    limits = Limits(unsent_stream=256 << 10)
    async with serving({"/t/Echo": echoes}, limits=limits) as (_, port), calling(port) as call:
        sent = 0

        async def write() -> None:
            nonlocal sent
            for _ in range(400):
                await call.write(piece)
                sent += 1
            await call.done_writing()

        writing = asyncio.create_task(write())
        before = -1
        # Until the windows are full, replies lie here up to the limit, and nothing moves.
        while before != sent or not echoes or echoes[0].call.unsent < (256 << 10):
            assert not writing.done()
            before = sent
            await asyncio.sleep(0.3)
        assert sent < 400
        assert echoes[0].call.unsent <= (256 << 10) + len(piece)
        back = 0
        while (message := await call.read()) is not aio.EOF:
            back += len(message)
        await writing
        assert back == 400 * len(piece)
    assert echoes[0].reasons == [CloseReason.FINISHED]


async def test_too_large_messages_are_refused() -> None:
    echoes = Echoes()
    async with serving({"/t/Echo": echoes}, limits=Limits(message=1000)) as (_, port), calling(port) as call:
        await call.write(bytes(2000))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_drain_lets_open_calls_end() -> None:
    echoes = Echoes()
    async with serving({"/t/Echo": echoes}) as (server, port), calling(port) as call:
        await call.write(b"a")
        await call.read()
        draining = asyncio.create_task(server.drain(30))
        await asyncio.sleep(0)
        await call.write(b"b")
        assert await call.read() == b"b"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert await draining is True
    assert echoes[0].reasons == [CloseReason.FINISHED]


async def test_close_ends_open_calls() -> None:
    echoes = Echoes()
    async with serving({"/t/Echo": echoes}) as (server, port), calling(port) as call:
        await call.write(b"a")
        await call.read()
        assert await server.drain(0) is False
        assert (await call.code(), await call.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "the server is shutting down",
        )
        assert (server.stats.streams, server.stats.streams_total) == (0, 1)
    assert echoes[0].reasons == [CloseReason.ABORTED]


async def answer_over_tls(port: int, root: bytes, pair: tuple[bytes, bytes] | None = None) -> grpc.StatusCode:
    key = pair[1] if pair else None
    credentials = grpc.ssl_channel_credentials(root, key, pair[0] if pair else None)
    async with aio.secure_channel(f"localhost:{port}", credentials) as channel:
        try:
            await channel.unary_unary("/t/Echo")(b"hello", timeout=10)
        except aio.AioRpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


async def test_tls_client_certificates_and_reload() -> None:
    pairs = [self_signed(NOW), self_signed(NOW)]
    current = pairs[0]
    client = self_signed(NOW)
    async with serving({"/t/Echo": Echoes()}, tls=GrpcioTls(lambda: current)) as (server, port):
        assert await answer_over_tls(port, pairs[0][0]) is grpc.StatusCode.OK
        current = (pairs[1][0], pairs[0][1])
        with pytest.raises(ValueError, match="not a certificate and its key"):
            server.reload()
        assert await answer_over_tls(port, pairs[0][0]) is grpc.StatusCode.OK
        current = pairs[1]
        server.reload()
        assert await answer_over_tls(port, pairs[1][0]) is grpc.StatusCode.OK
        assert await answer_over_tls(port, pairs[0][0]) is grpc.StatusCode.UNAVAILABLE
    mutual = GrpcioTls(lambda: pairs[0], client_ca=client[0])
    async with serving({"/t/Echo": Echoes()}, tls=mutual) as (_, port):
        assert await answer_over_tls(port, pairs[0][0], client) is grpc.StatusCode.OK
        assert await answer_over_tls(port, pairs[0][0]) is grpc.StatusCode.UNAVAILABLE


def test_flags_this_stack_cannot_honour() -> None:
    with pytest.raises(ValueError, match=r"--tls-min-version=VersionTLS13 is not available"):
        grpcio_tls(lambda: (b"", b""), min_version="VersionTLS13")
    with pytest.raises(ValueError, match=r"--tls-cipher-suites is not available"):
        grpcio_tls(lambda: (b"", b""), cipher_suites="TLS_AES_128_GCM_SHA256")
    assert grpcio_tls(lambda: (b"", b""), min_version="VersionTLS12", client_ca=b"x").client_ca == b"x"


async def test_a_taken_port() -> None:
    async with serving({}) as (_, port):
        with pytest.raises(OSError, match="cannot listen"):
            await GrpcioServer({}).start("127.0.0.1", port)


async def test_grpcio_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(grpc, "aio", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(RuntimeError, match=r"pip install 'epp\[grpcio\]'"):
        await GrpcioServer({}, log=logging.getLogger("x")).start("127.0.0.1", 0)


async def test_every_address() -> None:
    server = GrpcioServer({"/t/Echo": Echoes()})
    port = await server.start("", 0)
    async with calling(port) as call:
        await call.write(b"a")
        assert await call.read() == b"a"
    await server.close()


async def test_reload_without_tls_does_nothing() -> None:
    server = GrpcioServer({})
    server.reload()
    assert await server.drain(1) is True
    await server.close()
