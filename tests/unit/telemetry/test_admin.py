"""The metrics port over real sockets: formats, compression, dumps, refusals and TLS."""

from __future__ import annotations

import gzip
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epp.telemetry.admin import AdminServer, bounded, metrics_tls, plugin_state
from epp.telemetry.metrics import Registry

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Dumping:
    """A plugin with a state."""

    type = "prefix"

    def __init__(self, name: str, state: Any) -> None:
        self.name = name
        self._state = state

    def dump_state(self) -> Any:
        if isinstance(self._state, Exception):
            raise self._state
        return self._state


def write_pair(folder: Path, name: str = "tls") -> Path:
    """A self-signed certificate and its key; the certificate's path."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return folder / f"{name}.crt"


def registry() -> Registry:
    result = Registry()
    result.counter("request_total", "Requests.", ("model_name",)).labels("m").inc()
    return result


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[str]:
    plugins = options.pop("plugins", [])
    server = AdminServer(registry(), lambda: plugins, wall_clock=lambda: NOW, **options)
    port = await server.start("127.0.0.1", 0, tls)
    try:
        yield f"{'https' if tls else 'http'}://localhost:{port}"
    finally:
        await server.close()
        await server.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def test_metrics_in_both_formats(client: aiohttp.ClientSession) -> None:
    async with serving() as url:
        async with client.get(url + "/metrics", headers={"Accept-Encoding": "identity"}) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert 'llm_d_epp_request_total{model_name="m"} 1.0' in text
            assert "process_resident_memory_bytes" in text
        accept = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1"}
        async with client.get(url + "/metrics", headers={**accept, "Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(await answer.read()).endswith(b"# EOF\n")
        async with client.get(url + "/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        async with client.get(url + "/other") as answer:
            assert answer.status == 404


async def test_plugin_state(client: aiohttp.ClientSession) -> None:
    plugins = [
        Dumping("index", {"endpoints": list(range(300))}),
        Dumping("silent", None),
        Dumping("broken", RuntimeError("boom")),
        Dumping("odd", {"when": NOW, "set": {1}}),
    ]
    async with (
        serving(plugins=plugins, collecting=lambda: {"failing": 2}) as url,
        client.get(url + "/debug/plugins/state") as answer,
    ):
        assert answer.headers["Content-Type"].startswith("application/json")
        state = json.loads(await answer.read())
    assert state["collector"] == {"failing": 2}
    assert state["timestamp"] == "2026-01-02T03:04:05+00:00"
    assert state["plugins"]["index"]["name"] == "index"
    assert state["plugins"]["index"]["type"] == "prefix"
    assert len(state["plugins"]["index"]["state"]["endpoints"]) == 101
    assert state["plugins"]["index"]["state"]["endpoints"][-1] == "... 200 more"
    assert state["plugins"]["silent"] == {
        "name": "silent", "type": "prefix", "message": "plugin does not support state collection",
    }  # fmt: skip
    assert state["plugins"]["broken"]["message"] == "the dump failed: RuntimeError: boom"
    assert state["plugins"]["odd"]["state"]["set"] == [1]


def test_dumps_are_bounded_in_width_and_depth() -> None:
    assert bounded({i: i for i in range(3)}, limit=2) == {"0": 0, "1": 1, "...": "1 more"}
    assert bounded([[[1]], {"a": {"b": 1}}], depth=2) == [["(1 entries)"], {"a": "(1 entries)"}]
    assert plugin_state([], NOW) == {"timestamp": NOW.isoformat(), "plugins": {}}


async def test_refusals_come_from_the_hook_but_health_is_open(client: aiohttp.ClientSession) -> None:
    async def authenticate(request: web.Request) -> int | None:
        return None if request.headers.get("Authorization") == "Bearer good" else 401

    async with serving(authenticate=authenticate) as url:
        for path, headers, status in (
            ("/metrics", {}, 401),
            ("/debug/plugins/state", {"Authorization": "Bearer bad"}, 401),
            ("/metrics", {"Authorization": "Bearer good"}, 200),
            ("/healthz", {}, 200),
        ):
            async with client.get(url + path, headers=headers) as answer:
                assert answer.status == status, path


async def test_a_taken_port_is_an_error() -> None:
    async with serving() as url:
        server = AdminServer(Registry(), lambda: [])
        with pytest.raises(OSError, match="address already in use"):
            await server.start("127.0.0.1", int(url.rsplit(":", 1)[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("admin-tls")
    write_pair(path)
    write_pair(path, "client")
    return path


async def test_tls_with_client_certificates(client: aiohttp.ClientSession, folder: Path) -> None:
    tls = metrics_tls(str(folder), str(folder / "client.crt"), authenticated=False)
    async with serving(tls) as url:
        plain = ssl.create_default_context(cafile=str(folder / "tls.crt"))
        with pytest.raises(aiohttp.ClientError):
            async with client.get(url + "/metrics", ssl=plain):
                pass
        plain.load_cert_chain(folder / "client.crt", folder / "client.key")
        async with client.get(url + "/metrics", ssl=plain) as answer:
            assert answer.status == 200
        plain.maximum_version = ssl.TLSVersion.TLSv1_2
        async with client.get(url + "/healthz", ssl=plain) as answer:
            assert answer.status == 200


def test_flags_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    assert metrics_tls("", "", authenticated=True) is None
    with pytest.raises(ValueError, match="needs --metrics-cert-dir"):
        metrics_tls("", "ca.pem", authenticated=True)
    with pytest.raises(ValueError, match="needs --metrics-endpoint-auth"):
        metrics_tls(str(folder), "", authenticated=False)
    with pytest.raises(ValueError, match=r"cannot load .*tls\.crt"):
        metrics_tls(str(tmp_path), "", authenticated=True)
    with pytest.raises(ValueError, match=r"cannot load .*missing\.pem"):
        metrics_tls(str(folder), str(tmp_path / "missing.pem"), authenticated=True)
