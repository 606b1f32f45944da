"""What both transports must do alike, seen by a grpcio client: without TLS, with it, and with client certificates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from epp.transport.call import Call, CloseReason
from epp.transport.certificates import self_signed
from epp.transport.grpcio_server import GrpcioServer, GrpcioTls
from epp.transport.health import CHECK, EXT_PROC, LIST, LIVENESS, READINESS, WATCH, HealthState, health_handlers
from epp.transport.health_messages import ServingStatus, encode_list, encode_request, encode_response
from epp.transport.limits import Limits
from epp.transport.server import Server
from epp.transport.tls import ServerTlsFactory, server_context

NOW = datetime.now(UTC)
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVING = encode_response(ServingStatus.SERVING)
NOT_SERVING = encode_response(ServingStatus.NOT_SERVING)
Messages = AsyncIterator[bytes]


class Scripted:
    """Echoes, and does what some messages say; ends when the client does, unless the path is `/t/Stay`."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.received = 0
        self.reasons: list[CloseReason] = []

    def receive(self, message: bytes) -> None:
        self.received += 1
        assert not self.reasons
        match message:
            case b"finish":
                self.call.send(b"last")
                self.call.finish(9, "enough: 5 % of \u00fc")
                self.call.send(b"ignored")
            case b"abort":
                self.call.abort(8, "too much")
            case b"raise":
                raise RuntimeError("a handler with a bug")
            case _:
                self.call.send(message)

    def half_closed(self) -> None:
        if self.call.path != "/t/Stay":
            self.call.finish()

    def closed(self, reason: CloseReason) -> None:
        self.reasons.append(reason)


@dataclass
class Service:
    """A server of either kind, and what its streams saw."""

    server: Server | GrpcioServer
    port: int
    health: HealthState
    calls: list[Scripted]
    root: bytes | None
    pair: tuple[bytes, bytes] | None

    @asynccontextmanager
    async def dial(self, *, stranger: bool = False) -> AsyncIterator[aio.Channel]:
        """A channel; `stranger`: it shows no client certificate."""
        options = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
        if self.root is None:
            opened = aio.insecure_channel(f"localhost:{self.port}", options=options)
        else:
            pair = None if stranger else self.pair
            credentials = grpc.ssl_channel_credentials(self.root, pair and pair[1], pair and pair[0])
            opened = aio.secure_channel(f"localhost:{self.port}", credentials, options=options)
        async with opened as channel:
            yield channel


@asynccontextmanager
async def serving(
    kind: str, security: str, folder: Path, client: tuple[bytes, bytes], *, limits: Limits | None = None
) -> AsyncIterator[Service]:
    calls: list[Scripted] = []

    def scripted(call: Call) -> Scripted:
        calls.append(Scripted(call))
        return calls[-1]

    health = HealthState()
    handlers = {"/t/Echo": scripted, "/t/Stay": scripted, **health_handlers(health)}
    pair = self_signed(NOW)
    (folder / "tls.crt").write_bytes(pair[0])
    (folder / "tls.key").write_bytes(pair[1])
    authority = folder / "ca.pem" if security == "mtls" else None
    if authority is not None:
        authority.write_bytes(client[0])
    server: Server | GrpcioServer
    if kind == "own":
        factory = ServerTlsFactory(lambda: server_context(folder, now=NOW, client_ca=authority))
        server = Server(handlers, limits=limits, tls=None if security == "plaintext" else factory)
    else:
        tls = None if security == "plaintext" else GrpcioTls(lambda: pair, client[0] if authority else None)
        server = GrpcioServer(handlers, limits=limits, tls=tls)
    port = await server.start("127.0.0.1", 0)
    try:
        yield Service(
            server,
            port,
            health,
            calls,
            None if security == "plaintext" else pair[0],
            client if authority is not None else None,
        )
    finally:
        await server.close()
        assert server.stats.streams == 0
        assert health.watchers == 0


@pytest.fixture(params=["own", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def plain(
    kind: str, tmp_path: Path, make_client_pair: Callable[[], tuple[bytes, bytes]]
) -> AsyncIterator[Service]:
    async with serving(kind, "plaintext", tmp_path, make_client_pair()) as found:
        yield found


@pytest.fixture(params=["plaintext", "tls", "mtls"])
async def service(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, make_client_pair: Callable[[], tuple[bytes, bytes]]
) -> AsyncIterator[Service]:
    async with serving(kind, request.param, tmp_path, make_client_pair()) as found:
        yield found


async def eventually(condition: Callable[[], bool]) -> None:
    """Yield to the loop until it holds; the test's own timeout ends what never does."""
    while not condition():  # noqa: ASYNC110 - the streams have no event for each of these
        await asyncio.sleep(0.01)


async def each(messages: Iterable[bytes]) -> Messages:
    for message in messages:
        yield message


async def test_both_ways_at_once_and_unary(service: Service) -> None:
    async with service.dial() as channel:
        call: Any = channel.stream_stream("/t/Echo")(metadata=(("x-a", "b"), ("y-bin", b"\0\xff")))
        for index in range(30):
            await call.write(b"m%d" % index)
            assert await call.read() == b"m%d" % index
        await call.done_writing()
        assert await call.read() is aio.EOF  # type: ignore[attr-defined]
        assert await call.code() is grpc.StatusCode.OK
        unary: Any = channel.unary_unary("/t/Echo")
        assert [await unary(message) for message in (b"", b"one", b"two")] == [b"", b"one", b"two"]
    await eventually(lambda: [one.reasons for one in service.calls] == [[CloseReason.FINISHED]] * 4)
    first = service.calls[0].call
    assert (b"x-a", b"b") in first.metadata
    assert first.path == "/t/Echo"
    assert "127.0.0.1" in first.peer


async def test_messages_beyond_4_mb(service: Service) -> None:
    """What grpc takes at most unless told otherwise; a prompt with images is larger."""
    big = [bytes([index]) * 5_000_000 for index in (1, 2)]
    async with service.dial() as channel:
        unary: Any = channel.unary_unary("/t/Echo")
        assert await unary(big[0]) == big[0]
        assert await unary(big[1], compression=grpc.Compression.Gzip) == big[1]
        call: Any = channel.stream_stream("/t/Echo")(each([*big, b"small"]))
        assert [message async for message in call] == [*big, b"small"]


async def test_health(service: Service) -> None:
    async with service.dial() as channel:
        check: Any = channel.unary_unary(CHECK)
        listed: Any = channel.unary_unary(LIST)
        assert await check(encode_request(LIVENESS)) == SERVING
        assert await check(encode_request(READINESS)) == NOT_SERVING
        watch: Any = channel.unary_stream(WATCH)(encode_request(EXT_PROC))
        assert await watch.read() == NOT_SERVING
        service.health.update(synced=True)
        assert await watch.read() == SERVING
        assert await listed(b"") == encode_list(service.health.statuses())
        service.health.update(draining=True)
        assert await watch.read() == NOT_SERVING
        with pytest.raises(aio.AioRpcError) as refused:
            await check(b"\x0a\x05abc")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        watch.cancel()
        await eventually(lambda: service.health.watchers == 0)


async def test_who_shows_no_certificate_where_one_is_wanted_is_refused(service: Service) -> None:
    async with service.dial(stranger=True) as channel:
        unary: Any = channel.unary_unary("/t/Echo")
        if service.pair is None:
            assert await unary(b"x") == b"x"
        else:
            with pytest.raises(aio.AioRpcError) as refused:
                await unary(b"x", timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("path", "message", "replies", "code", "details", "reason"),
    [
        ("/t/Echo", b"finish", [b"last"], "FAILED_PRECONDITION", "enough: 5 % of \u00fc", CloseReason.FINISHED),
        ("/t/Echo", b"abort", [], "RESOURCE_EXHAUSTED", "too much", CloseReason.ABORTED),
        ("/t/Echo", b"raise", [], "INTERNAL", None, CloseReason.ABORTED),
        ("/t/Nobody", None, [], "UNIMPLEMENTED", None, None),
    ],
)
async def test_statuses(
    plain: Service, path: str, message: bytes | None, replies: list[bytes], code: str, details: str | None, reason: Any
) -> None:
    async with plain.dial() as channel:
        call: Any = channel.stream_stream(path)()
        if message is not None:  # a write that the status overtakes would replace it by an error of the client's own
            await call.write(message)
        got = []
        with contextlib.suppress(aio.AioRpcError):
            while (reply := await call.read()) is not aio.EOF:  # type: ignore[attr-defined]
                got.append(reply)
        assert got == replies
        assert await call.code() is grpc.StatusCode[code]
        assert details is None or await call.details() == details
    await eventually(lambda: [one.reasons for one in plain.calls] == ([[reason]] if reason else []))


async def test_a_client_that_cancels(plain: Service) -> None:
    async with plain.dial() as channel:
        call: Any = channel.stream_stream("/t/Stay")()
        await call.write(b"x")
        assert await call.read() == b"x"
        call.cancel()
        await eventually(lambda: plain.calls[0].reasons == [CloseReason.RESET])


async def test_a_deadline_that_passes(plain: Service) -> None:
    async with plain.dial() as channel:
        call: Any = channel.stream_stream("/t/Stay")(timeout=0.3)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The server's clock or the client's reset, whichever is first; a call that the server never saw has no stream.
    await eventually(lambda: plain.server.stats.streams == 0 and all(len(one.reasons) == 1 for one in plain.calls))
    assert {reason for one in plain.calls for reason in one.reasons} <= {CloseReason.RESET, CloseReason.ABORTED}


async def test_a_client_that_disconnects(plain: Service) -> None:
    async with plain.dial() as channel:
        call: Any = channel.stream_stream("/t/Stay")()
        await call.write(b"x")
        assert await call.read() == b"x"
    await eventually(lambda: len(plain.calls[0].reasons) == 1)
    assert plain.calls[0].reasons[0] in (CloseReason.RESET, CloseReason.DISCONNECTED)


async def test_messages_above_the_limit_end_their_call_alone(
    kind: str, tmp_path: Path, make_client_pair: Callable[[], tuple[bytes, bytes]]
) -> None:
    limits = Limits(message=100_000)
    async with (
        serving(kind, "plaintext", tmp_path, make_client_pair(), limits=limits) as found,
        found.dial() as channel,
    ):
        good: Any = channel.stream_stream("/t/Echo")()
        await good.write(b"a")
        assert await good.read() == b"a"
        unary: Any = channel.unary_unary("/t/Echo")
        with pytest.raises(aio.AioRpcError) as refused:
            await unary(bytes(100_001))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await unary(bytes(100_000)) == bytes(100_000)
        await good.write(b"b")
        assert await good.read() == b"b"


async def test_calls_end_well_in_a_drain_and_get_unavailable_at_its_end(plain: Service) -> None:
    async with plain.dial() as channel:
        good, open_still = [channel.stream_stream(path)() for path in ("/t/Echo", "/t/Stay")]
        for call in (good, open_still):
            await call.write(b"a")
            assert await call.read() == b"a"
        drained = asyncio.create_task(plain.server.drain(3))
        await good.write(b"b")
        assert await good.read() == b"b"
        await good.done_writing()
        assert await good.code() is grpc.StatusCode.OK
        assert await drained is False
        await plain.server.close()
        assert await open_still.code() is grpc.StatusCode.UNAVAILABLE
        assert await open_still.details() == "the server is shutting down"
    assert {one.call.path: one.reasons for one in plain.calls} == {
        "/t/Echo": [CloseReason.FINISHED],
        "/t/Stay": [CloseReason.ABORTED],
    }


async def test_a_hundred_calls_at_once(plain: Service) -> None:
    async with plain.dial() as channel:
        stub: Any = channel.stream_stream("/t/Echo")

        async def one(index: int) -> list[int]:
            return [len(reply) async for reply in stub(each([bytes(index), bytes(index * 613 % 50_000), b"end"]))]

        sizes = await asyncio.gather(*(one(index) for index in range(100)))
    assert sizes == [[index, index * 613 % 50_000, 3] for index in range(100)]
    assert all(one.reasons == [CloseReason.FINISHED] for one in plain.calls)
