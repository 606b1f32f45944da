"""Our server with TLS on real sockets: grpcio as client, client certificates, versions, reload while calls go on."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from grpc import aio

from epp.transport.certificates import CertificateReloader, self_signed
from epp.transport.health import CHECK, LIST, READINESS, WATCH, HealthState, health_handlers
from epp.transport.health_messages import ServingStatus, encode_list, encode_request, encode_response
from epp.transport.server import Server
from epp.transport.tls import ServerTlsFactory, server_context

NOW = datetime.now(UTC)
SERVING = encode_response(ServingStatus.SERVING)


def write(folder: Path, pair: tuple[bytes, bytes]) -> None:
    (folder / "tls.crt").write_bytes(pair[0])
    (folder / "tls.key").write_bytes(pair[1])


@asynccontextmanager
async def serving(factory: ServerTlsFactory) -> AsyncIterator[tuple[int, HealthState, Server]]:
    state = HealthState()
    state.update(synced=True)
    server = Server(health_handlers(state), tls=factory)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port, state, server
    finally:
        await server.close()


@asynccontextmanager
async def channel(port: int, root: bytes, pair: tuple[bytes, bytes] | None = None) -> AsyncIterator[aio.Channel]:
    credentials = grpc.ssl_channel_credentials(root, pair[1] if pair else None, pair[0] if pair else None)
    async with aio.secure_channel(f"localhost:{port}", credentials) as result:
        yield result


async def check(open_channel: aio.Channel) -> bytes:
    answer: bytes = await open_channel.unary_unary(CHECK)(encode_request(READINESS), timeout=10)
    return answer


async def test_the_health_service_over_tls(tmp_path: Path) -> None:
    pair = self_signed(NOW)
    write(tmp_path, pair)
    async with serving(ServerTlsFactory(lambda: server_context(tmp_path, now=NOW))) as (port, state, _):
        async with channel(port, pair[0]) as calls:
            assert await check(calls) == SERVING
            assert await calls.unary_unary(LIST)(b"") == encode_list(state.statuses())
            watch = calls.unary_stream(WATCH)(encode_request(READINESS))
            assert await watch.read() == SERVING
            state.update(draining=True)
            assert await watch.read() == encode_response(ServingStatus.NOT_SERVING)
            watch.cancel()
        async with channel(port, self_signed(NOW)[0]) as calls:
            with pytest.raises(aio.AioRpcError) as refused:
                await check(calls)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_client_certificates_are_accepted_and_refused(
    tmp_path: Path, make_client_pair: Callable[[], tuple[bytes, bytes]]
) -> None:
    pair, gateway = self_signed(NOW), make_client_pair()
    write(tmp_path, pair)
    (tmp_path / "ca.pem").write_bytes(gateway[0])
    make = ServerTlsFactory(lambda: server_context(tmp_path, now=NOW, client_ca=tmp_path / "ca.pem"))
    async with serving(make) as (port, _, server):
        async with channel(port, pair[0], gateway) as calls:
            assert await check(calls) == SERVING
        for stranger in (None, make_client_pair()):
            async with channel(port, pair[0], stranger) as calls:
                with pytest.raises(aio.AioRpcError) as refused:
                    await check(calls)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.stats.tls_failures >= 2


async def test_the_minimum_version_holds_on_the_socket() -> None:
    factory = ServerTlsFactory(lambda: server_context(None, now=NOW, min_version="VersionTLS13"))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with serving(factory) as (port, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert reader is not None


async def test_certificates_change_while_calls_go_on(tmp_path: Path) -> None:
    first, second = self_signed(NOW), self_signed(NOW)
    write(tmp_path, first)
    factory = ServerTlsFactory(lambda: server_context(tmp_path, now=NOW))
    changed = asyncio.Event()
    results: list[bool] = []

    def reloaded(ok: bool) -> None:
        results.append(ok)
        changed.set()

    reloader = CertificateReloader(
        tmp_path, factory.reload, logging.getLogger("t"), reloaded=reloaded, poll=0.01, debounce=0.02
    )
    reloader.start()
    calls_made = 0
    async with serving(factory) as (port, _, _), channel(port, first[0]) as calls:

        async def traffic() -> None:
            nonlocal calls_made
            while True:
                assert await check(calls) == SERVING
                calls_made += 1

        going = asyncio.create_task(traffic())
        for pair, ok in (((b"bad", b"bad"), False), (second, True)):
            changed.clear()
            write(tmp_path, pair)
            await asyncio.wait_for(changed.wait(), 10)
            assert results[-1] is ok
        before = calls_made
        async with channel(port, second[0]) as new:
            assert await check(new) == SERVING
        while calls_made == before:  # the old connection keeps its certificate and goes on
            await asyncio.sleep(0)
            assert not going.done()
        going.cancel()
        async with channel(port, first[0]) as old:
            with pytest.raises(aio.AioRpcError):
                await check(old)
    await reloader.close()
