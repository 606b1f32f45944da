"""The HTTP sources: what they ask for, and how they trust."""

import asyncio
import datetime
import ipaddress
import logging
import random
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epp.api import ConfigError, Endpoint, EndpointTable, PluginContext, ScrapeTarget
from epp.datalayer.durations import seconds
from epp.datalayer.http_get import CpuMeter, HttpGet, ReadBuffer
from epp.datalayer.http_response import HttpResponse
from epp_plugins.sources.http import HttpSource
from epp_plugins.sources.metrics import MetricsDataSource
from epp_plugins.sources.models import ModelsDataSource

POD = Endpoint("pod", "10.0.0.1", 8000)
Result = HttpResponse | Exception


def build(kind: type[HttpSource] = MetricsDataSource, **parameters: Any) -> HttpSource:
    context = PluginContext(
        "source", time.monotonic, random.Random(1), logging.getLogger(), EndpointTable(), lambda name: pytest.fail(name)
    )
    return kind(msgspec.convert(parameters, kind.Params), context)


def test_defaults() -> None:
    source = build()
    assert source.target(POD) == ScrapeTarget("10.0.0.1", 8000, "/metrics")
    assert source.interval is None
    models = build(ModelsDataSource)
    assert models.target(POD).path == "/v1/models"
    assert models.interval == 10.0
    assert models.dump_state() == {"scheme": "http", "path": "/v1/models", "intervalSeconds": 10.0}


def test_parameters() -> None:
    source = build(path="/m?name[]=a", port=9100, interval="1m0.5s", scheme="http")
    assert source.target(POD) == ScrapeTarget("10.0.0.1", 9100, "/m?name[]=a")
    assert source.interval == 60.5
    assert build(interval=2).interval == 2.0


@pytest.mark.parametrize(
    "bad",
    [
        {"scheme": "ftp"},
        {"path": "metrics"},
        {"path": "/a b"},
        {"port": 70000},
        {"interval": "fast"},
        {"interval": -1},
        {"clientKeyPath": "/key.pem"},
        {"unknown": 1},
    ],
)
def test_parameters_that_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        build(**bad)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("0", None), ("0s", None), ("50ms", 0.05), ("1h2m3s", 3723.0), (0.5, 0.5), (0, None)],
)
def test_durations(text: str | float, expected: float | None) -> None:
    assert seconds(text) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("text", ["5", "s", "1x", "1s!", "-1s", float("nan"), float("inf")])
def test_durations_that_are_none(text: str | float) -> None:
    with pytest.raises(ValueError, match="no duration"):
        seconds(text)


@pytest.mark.parametrize("field", ["caCertPath", "clientCertPath"])
def test_missing_certificates_are_a_configuration_error(field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=field):
        build(scheme="https", **{field: str(tmp_path / "none.pem")})


def test_certificates_need_say_no_more_than_go_asks_for() -> None:
    """Python 3.13 wants a key identifier of the authority in every certificate; many private ones have none."""
    context = build(scheme="https", insecureSkipVerify=False).target(Endpoint("p", "10.0.0.1", 1)).tls
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


async def ask_over_tls(certificate: Path, *, want_client: bool = False, **parameters: Any) -> tuple[Result, list[str]]:
    """One page over TLS: what came back, and the ALPN protocol that was agreed on."""
    agreed: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        agreed.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        writer.close()

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    if want_client:
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(certificate)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    source = build(scheme="https", **parameters)
    target = source.target(Endpoint("pod", "127.0.0.1", server.sockets[0].getsockname()[1]))
    result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    done: Callable[[Result], None] = result.set_result
    get = HttpGet(
        target, done, buffer=ReadBuffer(), meter=CpuMeter(time.thread_time), clock=time.monotonic, max_body=1 << 20
    )
    get.get()
    try:
        return await result, agreed
    finally:
        get.close()
        server.close()
        await server.wait_closed()


async def test_any_certificate_is_accepted_by_default(certificate: Path) -> None:
    response, agreed = await ask_over_tls(certificate)
    assert isinstance(response, HttpResponse)
    assert response.body == b"x" * 100_000
    assert agreed == ["http/1.1"]


async def test_verification_against_a_ca(certificate: Path) -> None:
    response, _ = await ask_over_tls(certificate, insecureSkipVerify=False, caCertPath=str(certificate))
    assert isinstance(response, HttpResponse)
    refused, _ = await ask_over_tls(certificate, insecureSkipVerify=False)
    assert isinstance(refused, ssl.SSLCertVerificationError)


async def test_mutual_tls(certificate: Path) -> None:
    response, _ = await ask_over_tls(certificate, want_client=True, clientCertPath=str(certificate))
    assert isinstance(response, HttpResponse)
    split = {"clientCertPath": str(certificate), "clientKeyPath": str(certificate)}
    response, _ = await ask_over_tls(certificate, want_client=True, **split)
    assert isinstance(response, HttpResponse)
    refused, _ = await ask_over_tls(certificate, want_client=True)
    assert isinstance(refused, Exception)
