"""The picker as the manifests of the conformance suite start it: their flags, rights and probes, a data-parallel pool.

The process runs the configuration that the image for the suite has in its entry point. Its API server lets it read pods
and InferencePools, as the suite's Role does, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web

from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.ports import free_ports
from epp.demo.processes import end
from tests.kubernetes.api_server import PODS, POOLS, ApiServer, pod, pool

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/conformance/Dockerfile").read_text()
ADDRESSES = ("127.0.8.1", "127.0.8.2", "127.0.8.3")
BODY = {"model": "conformance-fake-model", "prompt": "Write as if you were a critic: San Francisco"}
SERVED = "x-conformance-test-served-endpoint"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse{status}
FOREIGN = "10.9.8.7:3000,10.9.8.6"


OLDER_CONFIG = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: header-based-testing-filter
- type: destination-endpoint-served-verifier
schedulingProfiles:
- name: conformance-profile
  plugins:
  - pluginRef: header-based-testing-filter
"""
"""Suites up to 1.5 brought a configuration of their own, for the picker that was theirs then."""


def command(health: int, grpc_port: int, metrics: int) -> list[str]:
    """The image's entry point and the suite's arguments, as they are but for the ports."""
    entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[0])
    copied = re.search(r"^COPY (\S+) (\S+)$", DOCKERFILE, re.M)
    assert copied is not None
    ours = [argument.replace(copied[2], str(ROOT / copied[1])) for argument in entrypoint[1:]]
    suite = ["--pool-name", "primary", "--pool-namespace", "ns", "--zap-encoder", "json"]
    suite += ["--grpc-port", str(grpc_port), "--grpc-health-port", str(health)]
    return [sys.executable, "-m", "epp", *ours, *suite, "--metrics-port", str(metrics)]


@contextlib.asynccontextmanager
async def servers(addresses: tuple[str, ...], count: int) -> AsyncIterator[list[int]]:
    """On each address the same `count` ports; every answer names who gave it, and is no completion."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        assert request.transport is not None
        host, port = request.transport.get_extra_info("sockname")[:2]
        return web.json_response({"path": request.path}, headers={"x-served-by": f"{host}:{port}"})

    async with contextlib.AsyncExitStack() as stack:
        ports = free_ports(count)
        for address in addresses:
            for port in ports:
                app = web.Application()
                app.router.add_route("*", "/{path:.*}", answer)
                runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, address, port).start()
        yield ports


async def probed(port: int, service: str) -> bytes | None:
    """What the kubelet's gRPC probe is told; None while nobody answers."""
    name = service.encode()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with contextlib.suppress(grpc.aio.AioRpcError):
            told: bytes = await check(b"\x0a" + bytes([len(name)]) + name if name else b"", timeout=2)
            return told
    return None


async def until_probed(port: int, service: str, status: bytes) -> None:
    for _ in range(300):
        if await probed(port, service) == status:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{service!r} is never {status!r}")


@pytest.mark.parametrize("suite", ["1.6", "1.5"])
async def test_as_the_manifests_of_the_suite_start_it(tmp_path: Path, suite: str) -> None:
    more: list[str] = []
    if suite == "1.5":
        (tmp_path / "conformance-plugins.yaml").write_text(OLDER_CONFIG)
        more = ["--v", "4", "--config-file", str(tmp_path / "conformance-plugins.yaml")]
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer().serving())
        api.granted = {PODS, POOLS}
        ports = await stack.enter_async_context(servers(ADDRESSES, 3))
        (tmp_path / "kubeconfig").write_text(api.kubeconfig())
        grpc_port, health, metrics, listen, admin = free_ports(5)
        environment = {
            **os.environ,
            "KUBECONFIG": str(tmp_path / "kubeconfig"),
            "POD_NAME": "primary-app-backend-epp-7d9f-x2x4z",
            "NAMESPACE": "ns",
            "POD_IP": "127.0.0.1",
        }
        with (tmp_path / "picker.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command(health, grpc_port, metrics), *more, stdout=log, stderr=log, env=environment
            )
        stack.push_async_callback(end, process, 5.0)
        await until_probed(health, "inference-extension", NOT_SERVING)
        api.put(POOLS, pool("primary", *ports))
        for number, address in enumerate(ADDRESSES):
            api.put(PODS, pod(f"backend-{number}", address))
        for service in ("inference-extension", "", "liveness", "readiness"):
            await until_probed(health, service, SERVING)
        everyone = [f"{address}:{port}" for address in ADDRESSES for port in ports]
        upstreams = tuple((address, port) for address in ADDRESSES for port in ports)
        gateway = Gateway("istio", listen, admin, grpc_port, upstreams=upstreams)
        envoy = await stack.enter_async_context(Envoy(gateway, tmp_path))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        gate = asyncio.Semaphore(10)

        async def ask(selection: str) -> str:
            headers = {"test-epp-endpoint-selection": selection} if selection else {}
            async with (
                gate,
                client.post(f"{envoy.url}/primary-gateway-dp-test", json=BODY, headers=headers) as answer,
            ):
                assert answer.status == 200, await answer.text()
                assert answer.headers[SERVED] == answer.headers["x-served-by"]
                return answer.headers[SERVED]

        for allowed in (everyone[:1], everyone[4:6], everyone[6:], everyone):
            seen = Counter(await asyncio.gather(*(ask(",".join([*allowed, FOREIGN])) for _ in range(100))))
            assert set(seen) <= set(allowed)
        # An address alone stands for the three ports of its pod.
        seen = Counter(await asyncio.gather(*(ask(ADDRESSES[1]) for _ in range(100))))
        assert set(seen) == set(everyone[3:6])
        async with client.get(f"{envoy.url}/any/path") as answer:
            assert answer.status == 200
            assert answer.headers[SERVED] in everyone
        # Objectives and rewrites were asked for in vain, in both groups, and nothing else that no Role allows.
        assert {refused.rpartition("/")[2] for refused in api.refusals} == {
            "inferenceobjectives",
            "inferencemodelrewrites",
        }
        for _ in range(2):  # the second one ends the drain
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        lines = (tmp_path / "picker.log").read_text().splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines)  # --zap-encoder json
