"""Start, drain and end of the process; the other transport; what the operator is told."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml

from epp.demo.envoy import Envoy, find_envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import PickerProcess
from epp.demo.ports import free_ports
from epp.transport.health_messages import ServingStatus

PROMPT = {"model": "m", "prompt": "hello", "max_tokens": 5}


async def health(port: int, service: str) -> ServingStatus:
    """What the health port says."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer: bytes = await check(b"\n" + bytes([len(service)]) + service.encode() if service else b"", timeout=5)
        return ServingStatus(answer[1] if answer else 0)


async def stream(client: aiohttp.ClientSession, url: str, events: int) -> tuple[int, int]:
    """Status and number of events of one streamed answer of about `events` * 20 ms."""
    headers = {"x-do-stream": str(events), "x-do-gap": "0.02"}
    async with client.post(url + "/v1/completions", json=PROMPT, headers=headers) as answer:
        return answer.status, (await answer.read()).count(b"data: ")


async def test_sigterm_under_load_loses_nothing(stage: Any) -> None:
    async with stage("standalone", flags=("--drain-timeout=1500ms",), health_check=False) as s:
        loop = asyncio.get_running_loop()
        assert await health(s.picker.health_port, "readiness") is ServingStatus.SERVING
        tasks = [asyncio.create_task(stream(s.client, s.envoy.url, 60)) for _ in range(20)]
        await asyncio.sleep(0.2)

        assert s.picker.process is not None
        s.picker.process.send_signal(signal.SIGTERM)
        terminated = loop.time()
        for _ in range(100):
            if await health(s.picker.health_port, "readiness") is ServingStatus.NOT_SERVING:
                break
            await asyncio.sleep(0.01)
        assert await health(s.picker.health_port, "readiness") is ServingStatus.NOT_SERVING
        assert await health(s.picker.health_port, "liveness") is ServingStatus.SERVING
        while loop.time() - terminated < 1.2:
            # The drain window: the gateway still sends, the last of these answers end after the window has closed.
            tasks += [asyncio.create_task(stream(s.client, s.envoy.url, 40)) for _ in range(3)]
            await asyncio.sleep(0.05)
        results = await asyncio.gather(*tasks)
        assert {status for status, _ in results} == {200}
        assert all(events in (62, 42) for _, events in results)
        assert await asyncio.wait_for(s.picker.process.wait(), 15) == 0
        await s.clean()


async def test_two_pickers_hand_over_without_a_failed_request(stage: Any, tmp_path: Path) -> None:
    async with stage("standalone") as s:
        other_folder = tmp_path / "other"
        other_folder.mkdir()
        flags = ("--drain-timeout=4s",)
        async with PickerProcess(other_folder, s.servers.served, flags=flags) as other:
            listen, admin = free_ports(2)
            gateway = Gateway(
                "standalone",
                listen,
                admin,
                s.picker.grpc_port,
                pickers=(s.picker.grpc_port, other.grpc_port),
                health_check=True,
            )
            envoy_folder = tmp_path / "envoy"
            envoy_folder.mkdir()
            async with Envoy(gateway, envoy_folder) as envoy:
                for _ in range(100):
                    if (await envoy.stats("cluster.picker.")).get("membership_healthy") == 2:
                        break
                    await asyncio.sleep(0.05)
                statuses: list[int] = []

                async def ask() -> None:
                    for _ in range(60):
                        async with s.client.post(envoy.url + "/v1/completions", json=PROMPT) as answer:
                            statuses.append(answer.status)
                        await asyncio.sleep(0.1)

                asking = asyncio.gather(*(ask() for _ in range(4)))
                await asyncio.sleep(0.5)
                assert other.process is not None
                other.process.send_signal(signal.SIGTERM)
                await asking
                assert set(statuses) == {200}
                assert await asyncio.wait_for(other.process.wait(), 30) == 0


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_the_reference_transport_serves_the_same(stage: Any, tls: bool) -> None:
    async with stage("istio", tls=tls, flags=("--transport=grpcio",)) as s:
        assert (await s.post(PROMPT)).status == 200
        body = json.dumps(PROMPT | {"prompt": "x" * 300_000}).encode()
        assert (await s.post(body)).status == 200
        assert s.servers.received[-1][1].body == body
        assert (await (await s.post(PROMPT, x_do_stream="10")).read()).count(b"data: ") == 12
        assert (await s.post({"model": "m"})).status == 400
        await s.idle()
        await s.clean()


@pytest.mark.parametrize("body_mode", ["FULL_DUPLEX_STREAMED", "NONE"])
async def test_the_standalone_file_works_as_it_is(stage: Any, tmp_path: Path, body_mode: str) -> None:
    text = (Path(__file__).parents[2] / "deploy" / "envoy" / "standalone.yaml").read_text()
    assert "response_body_mode: FULL_DUPLEX_STREAMED   # NONE for the light mode" in text
    config = yaml.safe_load(
        text.replace("response_body_mode: FULL_DUPLEX_STREAMED", f"response_body_mode: {body_mode}")
    )
    async with stage("standalone") as s:
        listen, admin = free_ports(2)
        config["admin"]["address"]["socket_address"]["port_value"] = admin
        listener = config["static_resources"]["listeners"][0]
        listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": listen}
        picker = config["static_resources"]["clusters"][1]
        endpoint = picker["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"]["socket_address"]["port_value"] = s.picker.grpc_port
        path = tmp_path / "standalone.json"
        path.write_text(json.dumps(config))
        process = await asyncio.create_subprocess_exec(
            find_envoy(), "-c", str(path), "--disable-hot-restart", "-l", "error", "--concurrency", "1"
        )
        try:
            status = 0
            for _ in range(200):
                try:
                    status, events = await stream(s.client, f"http://127.0.0.1:{listen}", 5)
                except aiohttp.ClientError:
                    status = 0
                if status == 200:
                    break
                await asyncio.sleep(0.05)
            assert (status, events) == (200, 7)
            await s.idle()
        finally:
            process.terminate()
            await process.wait()


async def test_a_bad_configuration_stops_the_start_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "epp.yaml"
    path.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorre\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "epp",
        "serve",
        "--config-file",
        str(path),
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate()
    assert process.returncode == 1
    assert b"queue-scorre" in error
    assert b"queue-scorer" in error
    assert b"epp.yaml" in error


async def test_state_and_metrics_of_a_running_picker(stage: Any) -> None:
    async with stage("standalone", flags=("--zap-encoder=json", "-v=4")) as s:
        await s.post(PROMPT)
        async with s.client.get(f"http://127.0.0.1:{s.picker.metrics_port}/debug/plugins/state") as answer:
            state = await answer.json()
        assert state["plugins"]["approx-prefix-cache-producer"]["type"] == "approx-prefix-cache-producer"
        assert state["collector"]["fetches"] >= state["collector"]["endpoints"] > 0
        assert await s.metric("llm_d_epp_transport_connections") >= 1
        assert await s.metric("inference_objective_request_total") == 1
        lines = [json.loads(line) for line in s.picker.log().splitlines()]
        assert any("ready: ext_proc" in line["msg"] for line in lines)
