"""One picker in this process: ports, readiness, certificates, both transports, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from epp.api.errors import ConfigError
from epp.cli import serve as serve_module
from epp.cli.flags import FlagError, ServeOptions
from epp.cli.serving import Picker
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.service import METHOD
from epp.telemetry.exposition import render_now
from epp.telemetry.logs import start_logging
from epp.transport.certificates import self_signed
from tests.waiting import until

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: queue-scorer}
- {type: prefix-cache-scorer}
- {type: file-discovery, parameters: {path: %s}}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: queue-scorer}, {pluginRef: prefix-cache-scorer}]}
dataLayer: {discovery: {pluginRef: file-discovery}}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: [{name: a, address: 127.0.0.1, port: '9'}]\n")
    return CONFIG % endpoints


def options(config: str, **changes: Any) -> ServeOptions:
    return ServeOptions(
        **{
            "grpc_port": 0,
            "grpc_health_port": 0,
            "metrics_port": 0,
            "listen_address": "127.0.0.1",
            "config_text": config,
            "metrics_endpoint_auth": False,
            "tracing": False,
            "drain_timeout": 0.05,
            "health_checking": True,
        }
        | changes
    )


@asynccontextmanager
async def running(opts: ServeOptions, **more: Any) -> AsyncIterator[Picker]:
    picker = Picker(opts, environment={}, **more)
    await picker.start()
    try:
        yield picker
    finally:
        await picker.stop()


def channel(picker: Picker, certificate: bytes | None = None) -> grpc.aio.Channel:
    address = f"127.0.0.1:{picker.grpc_port}"
    if certificate is None:
        return grpc.aio.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(certificate)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", "localhost")])


async def pick(through: grpc.aio.Channel) -> str:
    """The endpoint picked for a GET."""
    call = through.stream_stream(METHOD)()
    request = pb.ProcessingRequest()
    request.request_headers.end_of_stream = True
    for key, value in {":method": "GET", ":path": "/v1/models"}.items():
        header = request.request_headers.headers.headers.add()
        header.key, header.raw_value = key, value.encode()
    request.protocol_config.request_body_mode = pb.FULL_DUPLEX_STREAMED
    await call.write(request.SerializeToString())
    reply = pb.ProcessingResponse.FromString(await call.read())
    call.cancel()
    headers = {
        option.header.key: option.header.raw_value.decode()
        for option in reply.request_headers.response.header_mutation.set_headers
    }
    return headers["x-gateway-destination-endpoint"]


async def serving_status(through: grpc.aio.Channel, service: bytes) -> int:
    check = through.unary_unary("/grpc.health.v1.Health/Check")
    answer: bytes = await check(b"\n" + bytes([len(service)]) + service, timeout=5)
    return answer[1]


@pytest.mark.parametrize("transport", ["own", "grpcio"])
async def test_it_picks_and_tells_its_health(config: str, transport: str) -> None:
    opts = options(config, secure_serving=False, transport=transport, drain_timeout=2.0)
    async with running(opts) as picker, channel(picker) as through:
        assert await pick(through) == "127.0.0.1:9"
        assert await serving_status(through, b"readiness") == 1
        assert picker.health.ready
        draining = asyncio.create_task(picker.drain())
        await asyncio.sleep(0.01)
        assert await serving_status(through, b"readiness") == 2
        assert await serving_status(through, b"liveness") == 1
        await through.close()
        await draining


def message(**parts: Any) -> bytes:
    """A `ProcessingRequest` in full duplex."""
    modes = pb.ProtocolConfiguration(
        request_body_mode=pb.FULL_DUPLEX_STREAMED, response_body_mode=pb.FULL_DUPLEX_STREAMED
    )
    return pb.ProcessingRequest(**parts, protocol_config=modes).SerializeToString()


async def stream_totals(picker: Picker, expected: dict[str, float]) -> dict[str, float]:
    """`extproc_streams_total` by code, once it is as expected or a long time has passed."""
    totals: dict[str, float] = {}
    for _ in range(200):
        series = (
            line for line in render_now(picker.registry).decode().splitlines() if "extproc_streams_total{" in line
        )
        totals = {line.split('code="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in series}
        if totals == expected:
            break
        await asyncio.sleep(0.05)
    return totals


@pytest.mark.parametrize("transport", ["own", "grpcio"])
async def test_stream_metrics_tell_how_streams_ended(config: str, transport: str) -> None:
    get = message(request_headers=pb.HttpHeaders(end_of_stream=True))
    answered = message(response_headers=pb.HttpHeaders(end_of_stream=True))
    body = message(request_body=pb.HttpBody(body=b"{}"))
    opts = options(config, secure_serving=False, transport=transport, enable_grpc_stream_metrics=True)
    async with running(opts) as picker, channel(picker) as through:
        process = through.stream_stream(METHOD)
        whole, reset, wrong = process(), process(), process()
        for told in (get, answered):
            await whole.write(told)
            await whole.read()
        await whole.done_writing()
        assert await whole.code() == grpc.StatusCode.OK
        await reset.write(get)
        await reset.read()
        reset.cancel()
        await wrong.write(body)
        assert await wrong.code() == grpc.StatusCode.INVALID_ARGUMENT
        expected = {"OK": 1.0, "Canceled": 1.0, "InvalidArgument": 1.0}
        assert await stream_totals(picker, expected) == expected
        page = render_now(picker.registry).decode()
        assert "llm_d_epp_extproc_streams_inflight 0.0" in page
        assert "llm_d_epp_extproc_stream_duration_seconds_count 3.0" in page


async def test_what_is_in_flight_is_counted_by_default(config: str) -> None:
    async with running(options(config, secure_serving=False)) as picker, channel(picker) as through:
        inflight = picker.pool.table.columns["inflight_requests"]
        call = through.stream_stream(METHOD)()
        await call.write(message(request_headers=pb.HttpHeaders(end_of_stream=True)))
        await call.read()
        assert inflight.sum() == 1
        call.cancel()
        for _ in range(200):
            if not inflight.any():
                break
            await asyncio.sleep(0.05)
        assert not inflight.any()


@pytest.mark.parametrize("transport", ["own", "grpcio"])
async def test_streams_that_the_picker_ends_as_it_stops(config: str, transport: str) -> None:
    opts = options(config, secure_serving=False, transport=transport, enable_grpc_stream_metrics=True)
    async with running(opts) as picker, channel(picker) as through:
        call = through.stream_stream(METHOD)()
        await call.write(message(request_headers=pb.HttpHeaders(end_of_stream=True)))
        await call.read()
        await picker.stop()
        assert await stream_totals(picker, {"Unavailable": 1.0}) == {"Unavailable": 1.0}


async def test_without_the_flag_there_are_no_stream_metrics(config: str) -> None:
    async with running(options(config, secure_serving=False)) as picker, channel(picker) as through:
        assert await pick(through) == "127.0.0.1:9"
        assert b"extproc_stream" not in render_now(picker.registry)


@pytest.mark.parametrize("transport", ["own", "grpcio"])
async def test_a_new_certificate_is_used(config: str, tmp_path: Path, transport: str) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()

    def renew() -> bytes:
        certificate, key = self_signed(datetime.now(UTC))
        (folder / "tls.key").write_bytes(key)
        (folder / "tls.crt").write_bytes(certificate)
        return certificate

    first = renew()
    opts = options(config, cert_path=str(folder), enable_cert_reload=True, transport=transport)
    async with running(opts) as picker:
        async with channel(picker, first) as through:
            assert await pick(through) == "127.0.0.1:9"
        second = renew()
        for _ in range(100):
            async with channel(picker, second) as through:
                try:
                    assert await asyncio.wait_for(pick(through), 2) == "127.0.0.1:9"
                    break
                except (grpc.aio.AioRpcError, TimeoutError):
                    await asyncio.sleep(0.1)
        else:
            raise AssertionError("the new certificate was never used")


async def test_the_metrics_port_tells_readiness_state_and_transport(config: str) -> None:
    from epp.demo.ports import free_ports

    port = free_ports(1)[0]
    opts = options(config, metrics_port=port, refresh_prometheus_metrics_interval=0.05)
    async with running(opts), aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200
        await asyncio.sleep(0.1)
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            page = await answer.text()
        assert "llm_d_epp_transport_connections 0.0" in page
        assert 'llm_d_epp_ready_endpoints{name="epp"} 0' in page


async def test_durations_are_counted_though_no_request_is_picked(config: str) -> None:
    async with running(options(config, refresh_prometheus_metrics_interval=0.05)) as picker:
        tally = picker.registry.tally(picker.registry.histogram("waiting_seconds", "For this test.", [1.0]).labels())
        tally.observe(0.5)
        await until(lambda: not tally.waiting)


async def test_what_cannot_start_says_why_and_leaves_nothing_open(config: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="queue-scorer"):
        Picker(options(config.replace("type: queue-scorer", "type: queue-scorre")), environment={})
    with pytest.raises(FlagError, match="file-discovery"):
        Picker(options(""), environment={})
    with pytest.raises(ConfigError, match=r"configuration file .*nowhere"):
        Picker(options("", config_file=str(tmp_path / "nowhere.yaml")), environment={})
    async with running(options(config, secure_serving=False)) as picker:
        taken = picker.grpc_port
        for flag in ("grpc-port", "grpc-health-port", "metrics-port"):
            with pytest.raises(OSError, match=f"--{flag}={taken}: .*another process has that port"):
                await Picker(options(config, **{flag.replace("-", "_"): taken}), environment={}).start()
    with pytest.raises(ValueError, match=r"tls\.crt"):
        await Picker(options(config, cert_path=str(tmp_path)), environment={}).start()


@pytest.mark.parametrize("transport", ["own", "grpcio"])
async def test_what_a_flag_names_and_is_not_there_is_said_with_the_flag(config: str, transport: str) -> None:
    opts = options(config, transport=transport, tls_client_ca_file="/nowhere/ca.crt")
    with pytest.raises(ValueError, match=r"--tls-client-ca-file: cannot load /nowhere/ca\.crt"):
        await Picker(opts, environment={}).start()
    with pytest.raises(OSError, match=r"--listen-address: 300\.1\.1\.1 "):
        await Picker(options(config, transport=transport, listen_address="300.1.1.1"), environment={}).start()


async def test_metrics_that_nobody_guards_are_said_to_be_open(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, pem in zip(("tls.crt", "tls.key"), self_signed(datetime.now(UTC)), strict=True):
        (tmp_path / name).write_bytes(pem)
    guarded = options(config, metrics_endpoint_auth=True, metrics_cert_dir=str(tmp_path))
    async with running(guarded):
        assert "--metrics-endpoint-auth has no effect without Kubernetes" in caplog.text
    caplog.clear()
    ca = str(tmp_path / "tls.crt")
    async with running(dataclasses.replace(guarded, metrics_client_ca_file=ca)):
        assert "--metrics-endpoint-auth" not in caplog.text


async def test_declarations_beside_endpoints_from_a_file(config: str, tmp_path: Path) -> None:
    manifests = tmp_path / "declarations.yaml"
    manifests.write_text(
        "kind: InferenceObjective\nmetadata: {name: vip}\nspec: {priority: 3}\n---\n"
        "kind: InferenceModelRewrite\nmetadata: {name: all}\nspec: {rules: [{targets: [{modelRewrite: small}]}]}\n"
    )
    async with running(options(config, secure_serving=False, declarations_file=str(manifests))) as picker:
        assert picker._objectives.priority("vip") == 3
        assert picker._rewrites.target("m") == "small"
        assert picker.pool.synced


async def test_a_new_certificate_of_the_metrics_port_is_used(config: str, tmp_path: Path) -> None:
    from epp.demo.ports import free_ports

    def renew() -> bytes:
        certificate, key = self_signed(datetime.now(UTC))
        (tmp_path / "tls.key").write_bytes(key)
        (tmp_path / "tls.crt").write_bytes(certificate)
        return certificate

    port = free_ports(1)[0]
    first = renew()

    async def shown(session: aiohttp.ClientSession, believed: bytes, name: str | None) -> bool:
        trusting = ssl.create_default_context(cadata=believed.decode())
        trusting.check_hostname = name is not None
        try:
            url = f"https://127.0.0.1:{port}/metrics"
            async with session.get(url, ssl=trusting, server_hostname=name, headers={"Connection": "close"}) as answer:
                return answer.status == 200
        except aiohttp.ClientConnectorCertificateError:
            return False

    async def until_shown(session: aiohttp.ClientSession, believed: bytes) -> None:
        for _ in range(100):
            if await shown(session, believed, "localhost"):
                assert await shown(session, believed, None)  # by address: no name is sent
                return
            await asyncio.sleep(0.1)
        raise AssertionError("the certificate was never shown")

    guarded = options(config, metrics_endpoint_auth=True, metrics_cert_dir=str(tmp_path), metrics_port=port)
    async with running(guarded), aiohttp.ClientSession() as session:
        await until_shown(session, first)
        second = renew()
        await until_shown(session, second)
        assert not await shown(session, first, "localhost")
        (tmp_path / "tls.key").write_text("half")
        await asyncio.sleep(2.0)
        assert await shown(session, second, "localhost")


SLOW = """
import epp

class Slow(epp.Producer):
    type = "slow"
    warm = False

    def produce(self, request, endpoints):
        pass

    def ready(self):
        return Slow.warm
"""


async def test_the_log_says_what_readiness_waits_for(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    caplog.set_level("INFO", logger="epp")
    with_slow = config.replace(
        "- {type: queue-scorer}", f"- {{type: queue-scorer}}\n- {{type: {tmp_path}/slow.py:Slow}}"
    )
    async with running(options(with_slow)) as picker:
        assert f"not ready, waiting for the plugin {tmp_path}/slow.py:Slow: ext_proc on port" in caplog.text
        type(next(plugin for plugin in picker.pool.plugins.values() if plugin.type == "slow")).warm = True
        for _ in range(400):
            if "ready: 1 endpoints" in caplog.text:
                break
            await asyncio.sleep(0.05)
        assert "ready: 1 endpoints" in caplog.text
        assert picker.waiting_for() == ""


async def test_log_lines_that_did_not_fit_are_on_the_page(config: str) -> None:
    logs = start_logging(stream=io.StringIO(), queue_size=1)
    try:
        logs.handler.dropped = 2  # before the picker was there
        picker = Picker(options(config), environment={}, logging_=logs)
        logs.handler.counter.inc()
        page = render_now(picker.registry).decode()
        assert "llm_d_epp_log_records_dropped_total 3.0" in page
    finally:
        logs.stop()


async def test_a_signal_drains_and_ends_with_0(config: str) -> None:
    asyncio.get_running_loop().call_later(0.5, os.kill, os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(serve_module.serve(options(config, secure_serving=False)), 20) == 0


async def test_a_second_signal_ends_the_drain(config: str) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(0.5, os.kill, os.getpid(), signal.SIGTERM)
    loop.call_later(0.8, os.kill, os.getpid(), signal.SIGTERM)
    opts = options(config, secure_serving=False, drain_timeout=60.0)
    assert await asyncio.wait_for(serve_module.serve(opts), 20) == 0


async def test_serve_ends_with_1_when_it_cannot_start(config: str) -> None:
    assert await serve_module.serve(options(config.replace("queue-scorer", "queue"))) == 1


def test_flags_that_make_no_sense_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_module.run(["--no-such-flag"]) == 2
    assert "--no-such-flag" in capsys.readouterr().err
    assert serve_module.run(["--help"]) == 0
    assert "--grpc-port" in capsys.readouterr().out


def test_run_uses_a_loop_of_its_own(config: str) -> None:
    assert serve_module.run(["--config-text", config.replace("queue-scorer", "queue"), "--tracing=false"]) == 1
