"""The connection to the API server: in a cluster, with a kubeconfig, over TLS, and what is wrong with it."""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.config import incluster_config

import epp
from epp.api.endpoints import EndpointTable
from epp.kubernetes import reflector
from epp.kubernetes.connection import ApiConnection, ApiError, connect
from epp.kubernetes.pool import SelectedPods
from epp.transport.certificates import self_signed
from tests.kubernetes.api_server import PODS, ApiServer, pod
from tests.waiting import until

PODS_PATH = PODS.format("ns")


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """The server's; `ca.crt` is what its clients must believe."""
    certificate, key = self_signed(datetime.datetime.now(datetime.UTC))
    (tmp_path / "ca.crt").write_bytes(certificate)
    (tmp_path / "tls.key").write_bytes(key)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "ca.crt", tmp_path / "tls.key")
    return tls


@pytest.fixture
async def server(tls: ssl.SSLContext) -> AsyncIterator[ApiServer]:
    """Over TLS, for one user."""
    async with ApiServer(tokens={"first": "picker"}).serving(tls) as made:
        yield made


Connect = Callable[[], Any]


@pytest.fixture
def in_cluster(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Connects as a pod does."""
    (tmp_path / "token").write_text("first\n")
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    return lambda: connect(environment)


async def names(connection: ApiConnection) -> list[str]:
    return [item["metadata"]["name"] for item in json.loads(await connection.get(PODS_PATH, {}))["items"]]


async def test_in_a_cluster(server: ApiServer, in_cluster: Connect, tmp_path: Path) -> None:
    server.put(PODS, pod("a", "10.0.0.1"))
    connection = await in_cluster()
    assert connection.host == server.url
    assert await names(connection) == ["a"]
    (tmp_path / "token").write_text("")  # it is being replaced
    assert await names(connection) == ["a"]
    server.tokens = {"second": "picker"}  # the first one has expired
    with pytest.raises(ApiError, match="status 401, Unauthorized") as refused:
        await names(connection)
    assert refused.value.status == 401
    with pytest.raises(
        OSError, match=r"credentials for https://127\.0\.0\.1:\d+ cannot be read: the token file \S+ is"
    ):
        await names(connection)
    (tmp_path / "token").write_text("second")
    assert await names(connection) == ["a"]
    server.tokens = {"third": "picker"}
    (tmp_path / "token").write_text("third")  # long before the second one expires
    assert await names(connection) == ["a"]
    await connection.close()


async def test_a_watch_goes_on_with_the_next_token(server: ApiServer, in_cluster: Connect, tmp_path: Path) -> None:
    connection = await in_cluster()
    server.tokens = {"second": "picker"}
    with pytest.raises(ApiError, match=r"watch .*: status 401"):
        async with connection.watch(PODS_PATH, {}, 1.0):
            pass
    (tmp_path / "token").write_text("second")
    async with connection.watch(PODS_PATH, {"resourceVersion": "100"}, 5.0) as lines:
        server.put(PODS, pod("a", "10.0.0.1"))
        assert json.loads(await anext(lines))["object"]["metadata"]["name"] == "a"
    await connection.close()


class Rotation:
    """The server's certificate, and the bundle that a pod finds: the kubelet swaps a link."""

    def __init__(self, server: ApiServer, tls: ssl.SSLContext, folder: Path) -> None:
        self._server, self._tls, self._folder = server, tls, folder
        self.bundle = b""

    async def next(self) -> None:
        """The server shows a certificate of another authority from now on, on new connections."""
        certificate, key = self_signed(datetime.datetime.now(datetime.UTC))
        (self._folder / "next.crt").write_bytes(certificate)
        (self._folder / "next.key").write_bytes(key)
        self._tls.load_cert_chain(self._folder / "next.crt", self._folder / "next.key")
        await self._server.stop()
        await self._server.start()
        self.bundle = certificate

    def deliver(self, bundle: bytes) -> None:
        """As the kubelet does it: a new file, then a link to it in place of the old one."""
        made = self._folder / f"bundle-{len(list(self._folder.iterdir()))}"
        made.write_bytes(bundle)
        link = self._folder / "link"
        link.symlink_to(made)
        link.replace(self._folder / "ca.crt")


async def test_another_authority_is_believed_once_the_file_says_so(
    server: ApiServer, in_cluster: Connect, tls: ssl.SSLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(PODS, pod("a", "10.0.0.1"))
    connection = await in_cluster()
    assert await names(connection) == ["a"]
    rotation = Rotation(server, tls, tmp_path)
    await rotation.next()
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await names(connection)
    for half in (b"", b"-----BEGIN CERTIFICATE-----\nhalf of it"):  # it is just being written
        rotation.deliver(half)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):  # of the old authority
            await names(connection)
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await names(connection)
    assert caplog.text.count("the last authorities stay in use") == 3
    rotation.deliver(rotation.bundle)
    assert await names(connection) == ["a"]
    await connection.close()


async def test_a_rotated_authority_empties_nothing(
    server: ApiServer, in_cluster: Connect, tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows the pods loses the server for as long as the pod's bundle is the old one, and finds it again."""
    monkeypatch.setattr(reflector, "_LONGEST_PAUSE", 0.2)
    server.put(PODS, pod("a", "10.0.0.1"))
    connection, table = await in_cluster(), EndpointTable()
    followed = SelectedPods(connection, table, "ns", "app=vllm", [8000], clock=time.monotonic, rng=random.Random(1))
    await followed.start()
    await until(lambda: len(table) == 1)
    rotation = Rotation(server, tls, tmp_path)
    for number in (2, 3):
        await rotation.next()
        server.put(PODS, pod(f"p{number}", f"10.0.0.{number}"))
        await asyncio.sleep(0.4)
        assert len(table) == number - 1
        rotation.deliver(rotation.bundle)
        await until(lambda rows=number: len(table) == rows)
    await followed.stop()
    await connection.close()


async def test_the_servers_certificate_is_checked(server: ApiServer, in_cluster: Connect, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(self_signed(datetime.datetime.now(datetime.UTC))[0])
    connection = await in_cluster()
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await names(connection)
    await connection.close()


@pytest.mark.parametrize("checked", [True, False])
async def test_a_kubeconfig(server: ApiServer, tmp_path: Path, checked: bool) -> None:
    document = json.loads(server.kubeconfig("first", str(tmp_path / "ca.crt") if checked else ""))
    document["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = not checked
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(document))
    connection = await connect({"KUBECONFIG": str(path), "KUBERNETES_SERVICE_HOST": "ignored"})
    server.put(PODS, pod("a", "10.0.0.1"))
    assert await names(connection) == ["a"]
    status, document = await connection.call("POST", PODS_PATH, pod("b", "10.0.0.2"))
    assert (status, document["metadata"]["name"]) == (201, "b")
    status, document = await connection.call("POST", PODS_PATH, pod("b", "10.0.0.2"))
    assert (status, document["message"]) == (409, "already exists")
    assert (await connection.call("DELETE", f"{PODS_PATH}/b"))[0] == 200
    await connection.close()


async def test_without_a_server_the_start_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(epp.ConfigError, match="no Kubernetes API server is known") as error:
        await connect({"KUBECONFIG": str(tmp_path / "missing")})
    assert "set KUBECONFIG" in str(error.value)


async def test_answers_that_are_no_json_and_lines_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epp.kubernetes.connection._MAX_LINE", 1000)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") and request.path == "/long":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"type":"ADDED"}\n\n{"ty')
            await response.write(b'pe":"DELETED"}\n')
            await response.write(b"x" * 2000)
            return response
        return web.Response(status=502, text="<html>bad gateway</html>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    path = tmp_path / "kubeconfig"
    path.write_text(ApiServer(port=runner.addresses[0][1]).kubeconfig())
    connection = await connect({"KUBECONFIG": str(path)})
    with pytest.raises(ApiError, match="status 502, <html>bad gateway"):
        await connection.get("/x", {})
    assert await connection.call("PUT", "/x", {}) == (502, {"message": "<html>bad gateway</html>"})
    with pytest.raises(ApiError, match="status 502"):
        async with connection.watch("/x", {}, 1.0):
            pass
    lines: list[bytes] = []

    async def read() -> None:
        async with connection.watch("/long", {}, 5.0) as watched:
            async for line in watched:
                lines.append(line)  # noqa: PERF401 - those before the error count

    with pytest.raises(ApiError, match="an event of more than 1000 bytes"):
        await read()
    assert lines == [b'{"type":"ADDED"}', b'{"type":"DELETED"}']
    await connection.close()
    await runner.cleanup()
