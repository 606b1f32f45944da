"""A whole gateway on loopback: model servers that keep what they got, the picker, a real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import PickerProcess, Served
from epp.demo.ports import free_ports

WATCHED = ("spurious_msgs_received", "rejected_header_mutations", "streams_failed")


@dataclass
class Received:
    """What a model server saw of one request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def sha(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class ModelServers:
    """Some servers on loopback. The answer is steered by request headers (`x-do-…`). `roles`: their `llm-d.ai/role`."""

    count: int = 3
    roles: Sequence[str] = ()
    received: list[tuple[int, Received]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)
    _runners: list[web.AppRunner] = field(default_factory=list)

    async def start(self) -> None:
        for index in range(self.count):
            app = web.Application(client_max_size=1 << 28)
            app.router.add_get("/metrics", self._metrics_of(index))
            app.router.add_route("*", "/{path:.*}", self._handler_of(index))
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._runners.append(runner)
            self.ports.append(runner.addresses[0][1])

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def stop_one(self, index: int) -> None:
        """From now on its port refuses connections."""
        await self._runners[index].cleanup()

    @property
    def served(self) -> list[Served]:
        roles = self.roles or [""] * self.count
        return [
            Served("127.0.0.1", port, labels={"llm-d.ai/role": role} if role else {})
            for port, role in zip(self.ports, roles, strict=True)
        ]

    def _metrics_of(self, index: int) -> Callable[[web.Request], Any]:
        async def metrics(request: web.Request) -> web.Response:
            waiting = self.waiting.get(index, 0.0)
            return web.Response(
                text=f'vllm:num_requests_waiting{{model_name="m"}} {waiting}\n'
                'vllm:num_requests_running{model_name="m"} 0.0\n'
                'vllm:kv_cache_usage_perc{model_name="m"} 0.0\n'
                'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0\n'
            )

        return metrics

    def _handler_of(self, index: int) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.received.append((index, Received(request.method, request.path, headers, body)))
            served = {"x-served-by": str(index)}
            status = int(headers.get("x-do-status", "200"))
            if "x-do-stream" in headers:
                return await self._stream(request, headers, served)
            answer = {
                "id": "cmpl-1",
                "object": "text_completion",
                "model": _model(body),
                "choices": [{"index": 0, "text": "ä" * int(headers.get("x-do-size", "10")), "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
            }
            return web.json_response(answer, status=status, headers=served)

        return handle

    async def _stream(
        self, request: web.Request, headers: dict[str, str], served: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=served)
        response.content_type = "text/event-stream"
        await response.prepare(request)
        gap = float(headers.get("x-do-gap", "0"))
        for number in range(int(headers["x-do-stream"])):
            event = {"id": "cmpl-1", "model": "m", "choices": [{"index": 0, "text": f"t{number}"}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            if gap:
                await asyncio.sleep(gap)
        usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


def _model(body: bytes) -> str:
    try:
        return str(json.loads(body).get("model"))
    except (ValueError, AttributeError):
        return ""


@dataclass
class Stage:
    """Everything of one test."""

    servers: ModelServers
    picker: PickerProcess
    envoy: Envoy
    client: aiohttp.ClientSession

    async def post(self, body: Any, path: str = "/v1/completions", **headers: str) -> aiohttp.ClientResponse:
        data = body if isinstance(body, (bytes, AsyncIterator)) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("content-type", "application/json")
        answer = await self.client.post(self.envoy.url + path, data=data, headers=named)
        await answer.read()
        return answer

    async def clean(self) -> None:
        """No message was out of place, and nothing is left in flight."""
        stats = await self.envoy.stats()
        assert {name: stats.get(name, 0) for name in WATCHED} == dict.fromkeys(WATCHED, 0)

    async def idle(self) -> None:
        """Wait until the picker counts no running request; fails with its metrics when one stays."""
        for _ in range(100):
            running = await self.metric("llm_d_epp_request_running")
            if running == 0.0:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"requests still in flight: {running}")

    async def metric(self, name: str) -> float:
        """Sum over all series of a metric; 0 when there is none."""
        total = 0.0
        for line in (await self.picker.metrics()).splitlines():
            if line.startswith((name + "{", name + " ")):
                total += float(line.rsplit(" ", 1)[1])
        return total


StageFactory = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def stage(tmp_path: Path) -> StageFactory:
    """`async with stage("istio", tls=False, config=…) as s:`"""

    @contextlib.asynccontextmanager
    async def build(
        flavour: str = "standalone",
        *,
        tls: bool = True,
        config: str = "",
        flags: tuple[str, ...] = (),
        servers: int = 3,
        roles: Sequence[str] = (),
        **gateway: Any,
    ) -> AsyncIterator[Stage]:
        models = ModelServers(len(roles) or servers, roles)
        await models.start()
        try:
            async with PickerProcess(tmp_path, models.served, config=config, flags=flags, tls=tls) as picker:
                listen, admin = free_ports(2)
                upstreams = tuple(("127.0.0.1", port) for port in models.ports)
                described = Gateway(
                    flavour, listen, admin, picker.grpc_port, upstreams=upstreams, picker_tls=tls, **gateway
                )
                async with Envoy(described, tmp_path) as envoy, aiohttp.ClientSession() as client:
                    yield Stage(models, picker, envoy, client)
        finally:
            await models.stop()

    return build
