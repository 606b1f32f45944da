"""The package's client: what it sends, and that nothing stays behind of those that were replaced."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient

from epp.kubernetes.connection import ApiConnection, ApiError, connect
from epp.transport.certificates import self_signed
from tests.kubernetes.api_server import PODS, ApiServer, pod

PODS_PATH = PODS.format("ns")
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[ApiServer]:
    """An HTTP server that answers everything in one way; the object is only for its kubeconfig."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield ApiServer(port=runner.addresses[0][1])
    finally:
        await runner.cleanup()


@asynccontextmanager
async def connected(folder: Path, kubeconfig: str) -> AsyncIterator[ApiConnection]:
    (folder / "kubeconfig").write_text(kubeconfig)
    connection = await connect({"KUBECONFIG": str(folder / "kubeconfig")})
    try:
        yield connection
    finally:
        await connection.close()


async def echo(request: web.Request) -> web.StreamResponse:
    said = await request.text()
    document = {"method": request.method, "query": dict(request.query), "headers": dict(request.headers), "body": said}
    return web.Response(text=f"{json.dumps(document)}\n", content_type="application/json")


@pytest.mark.parametrize(
    "value",
    [
        "app=vllm,role!=prefill",
        "tier in (gold,silver),!draining",
        "example.com/role=a",
        "eyJ2IjoxfQ+/==",
        "a&b=c;d#e%2B?f",
        "größe=日本",
    ],
)
async def test_query_parameters_come_as_they_are(tmp_path: Path, value: str) -> None:
    async with serving(echo) as server, connected(tmp_path, server.kubeconfig()) as connection:
        told = json.loads(await connection.get("/x", {"labelSelector": value, "limit": "250"}))
        assert told["query"] == {"labelSelector": value, "limit": "250"}
        async with connection.watch("/x", {"fieldSelector": value}, 5.0) as lines:
            told = json.loads(await anext(lines))
            assert told["query"] == {"fieldSelector": value, "watch": "true"}


async def test_what_is_sent(tmp_path: Path) -> None:
    async with serving(echo) as server:
        async with connected(tmp_path, server.kubeconfig("secret")) as connection:
            told = json.loads(await connection.get("/x", {}))
            assert told["headers"]["User-Agent"] == "epp"
            assert told["headers"]["Accept"] == "application/json"
            assert told["headers"]["Authorization"] == "Bearer secret"
            assert "gzip" in told["headers"]["Accept-Encoding"]
            status, told = await connection.call("PUT", "/x", {"name": "größe", "spec": {"a": [1, None, True]}})
            assert (status, told["method"], told["headers"]["Content-Type"]) == (200, "PUT", "application/json")
            assert json.loads(told["body"]) == {"name": "größe", "spec": {"a": [1, None, True]}}
            assert (await connection.call("POST", "/x", {}))[1]["body"] == "{}"
            assert (await connection.call("DELETE", "/x"))[1]["body"] == ""
        plain = json.loads(server.kubeconfig())
        plain["clusters"][0]["cluster"]["disable-compression"] = True
        async with connected(tmp_path, json.dumps(plain)) as connection:
            told = json.loads(await connection.get("/x", {}))
            assert told["headers"]["Accept-Encoding"] == "identity"
            assert "Authorization" not in told["headers"]


async def test_what_the_environment_says_to_other_programs_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a proxy is asked has been settled from the environment that `connect` was given."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with serving(echo) as server, connected(tmp_path, server.kubeconfig()) as connection:
        assert "Authorization" not in json.loads(await connection.get("/x", {}))["headers"]


async def test_a_token_does_not_follow_to_another_server(tmp_path: Path) -> None:
    async with serving(echo) as other:

        async def lead_on(request: web.Request) -> web.StreamResponse:
            if request.path == "/here":
                return await echo(request)
            raise web.HTTPTemporaryRedirect("/here" if request.path == "/within" else f"{other.url}/there")

        async with serving(lead_on) as server, connected(tmp_path, server.kubeconfig("secret")) as connection:
            within = json.loads(await connection.get("/within", {}))
            assert within["headers"]["Authorization"] == "Bearer secret"
            for told in (json.loads(await connection.get("/x", {})), (await connection.call("GET", "/x"))[1]):
                assert "secret" not in str(told)


async def test_nothing_is_asked_twice(server: ApiServer, connection: ApiConnection) -> None:
    """Who asks decides when to ask again."""
    for server.status in (429, 500, 503):
        server.requests.clear()
        with pytest.raises(ApiError, match=f"status {server.status}"):
            await connection.get(PODS_PATH, {})
        assert (await connection.call("GET", PODS_PATH))[0] == server.status
        assert len(server.requests) == 2


async def watched(connection: ApiConnection) -> None:
    async with connection.watch(PODS_PATH, {"resourceVersion": str(10**6)}, 60.0) as lines:
        async for _ in lines:
            pass


async def test_no_way_out_of_a_call_keeps_its_socket(server: ApiServer, connection: ApiConnection) -> None:
    """More calls of each kind than there are sockets: the last one would wait for ever."""

    async def cancelled() -> None:
        server.delay = 60.0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.get(PODS_PATH, {}), 0.002)
        server.delay = 0.0

    async def refused() -> None:
        server.status = 500
        with pytest.raises(ApiError):
            await connection.get(PODS_PATH, {})
        with pytest.raises(ApiError):
            await watched(connection)
        server.status = 0

    async def left() -> None:
        with pytest.raises(ZeroDivisionError):
            async with connection.watch(PODS_PATH, {}, 60.0):
                _ = 1 / 0

    for way in (cancelled, refused, left):
        for _ in range(110):
            await way()
        async with asyncio.timeout(10.0):
            await connection.get(PODS_PATH, {})


def living(kind: type[Any]) -> list[Any]:
    gc.collect()
    return [made for made in gc.get_objects() if isinstance(made, kind)]


async def test_of_fifty_rotations_nothing_stays_behind(tmp_path: Path) -> None:
    before = len(living(ApiClient)), len(living(aiohttp.ClientSession))
    certificate, key = self_signed(datetime.datetime.now(datetime.UTC))
    (tmp_path / "ca.crt").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "ca.crt", tmp_path / "tls.key")
    async with (
        ApiServer(bookmark_seconds=60.0).serving(tls) as server,
        connected(tmp_path, server.kubeconfig("", str(tmp_path / "ca.crt"))) as connection,
    ):

        def pools() -> tuple[int, int]:
            return len(living(ApiClient)) - before[0], len(living(aiohttp.ClientSession)) - before[1]

        def rotate() -> None:
            (tmp_path / "ca.new").write_bytes(certificate + self_signed(datetime.datetime.now(datetime.UTC))[0])
            (tmp_path / "ca.new").replace(tmp_path / "ca.crt")

        async with connection.watch(PODS_PATH, {"resourceVersion": "100"}, 60.0) as lines:
            for number in range(50):
                # Some calls are on their way when the file is replaced, and end well.
                server.delay = 0.01
                running = [asyncio.create_task(connection.get(PODS_PATH, {})) for _ in range(3)]
                await asyncio.sleep(0.002)
                rotate()
                running += [asyncio.create_task(connection.get(PODS_PATH, {})) for _ in range(3)]
                assert all(await asyncio.gather(*running))
                server.put(PODS, pod(f"p{number}", "10.0.0.1"))
                assert json.loads(await anext(lines))["object"]["metadata"]["name"] == f"p{number}"
            del running
            assert pools() == (2, 2)  # the one of the watch, and the newest
        await connection.get(PODS_PATH, {})
        assert pools() == (1, 1)
        rotate()
        async with connection.watch(PODS_PATH, {"resourceVersion": "100"}, 60.0):
            assert pools() == (1, 1)  # nobody had to wait for its end
    assert all(session.closed for session in living(aiohttp.ClientSession)[before[1] :])


async def test_once_it_is_closed_nothing_is_asked(server: ApiServer, tmp_path: Path) -> None:
    """Not even by a client for what is believed since."""
    async with connected(tmp_path, server.kubeconfig()) as never_asked:
        await never_asked.close()
        with pytest.raises(RuntimeError, match=r"the connection to http://127\.0\.0\.1:\d+ is closed"):
            await never_asked.get(PODS_PATH, {})
    async with connected(tmp_path, server.kubeconfig()) as connection:
        async with connection.watch(PODS_PATH, {"resourceVersion": "100"}, 60.0) as lines:
            await connection.close()
            with pytest.raises((RuntimeError, aiohttp.ClientError), match=r"[Cc]losed"):
                await anext(lines)
        with pytest.raises(RuntimeError, match="is closed"):
            await connection.call("GET", PODS_PATH)
    assert server.requests == [f"GET {PODS_PATH}?resourceVersion=100&watch=true"]
