"""The pool from a Kubernetes API server, through a real Envoy: objects appear, change, and the server fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from epp.cli.flags import parse_serve
from epp.cli.serving import Picker
from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.ports import free_ports
from epp.telemetry.exposition import render_now
from tests.kubernetes.api_server import OBJECTIVES, PODS, POOLS, REWRITES, ApiServer, pod, pool

PAGE = (
    'vllm:num_requests_waiting{model_name="m"} 0\nvllm:num_requests_running{model_name="m"} 0\n'
    'vllm:kv_cache_usage_perc{model_name="m"} 0\n'
)


@dataclass
class Pods:
    """Servers that share one port on addresses of their own, as pods do."""

    port: int = 0
    models: list[str] = field(default_factory=list)
    _runners: list[web.AppRunner] = field(default_factory=list)

    @staticmethod
    def address(number: int) -> str:
        return f"127.0.7.{number + 1}"

    async def start(self, count: int) -> None:
        for number in range(count):
            runner = web.AppRunner(self._app(number), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, self.address(number), self.port).start()
            self.port = runner.addresses[0][1]
            self._runners.append(runner)

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    def _app(self, number: int) -> web.Application:
        async def answer(request: web.Request) -> web.Response:
            body = await request.read()
            model = json.loads(body)["model"] if body else ""
            self.models.append(model)
            return web.json_response({"model": model}, headers={"x-served-by": str(number)})

        async def metrics(_request: web.Request) -> web.Response:
            return web.Response(text=PAGE)

        app = web.Application()
        app.router.add_get("/metrics", metrics)
        app.router.add_route("*", "/{path:.*}", answer)
        return app


@dataclass
class Cluster:
    """Everything of one test."""

    api: ApiServer
    pods: Pods
    picker: Picker
    url: str
    client: aiohttp.ClientSession
    metrics_port: int

    async def ask(self, model: str = "m", **headers: str) -> tuple[int, str]:
        """Status, and which pod answered."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = {"model": model, "prompt": f"{time.monotonic()} tell me"}
        async with self.client.post(self.url + "/v1/completions", json=body, headers=named) as answer:
            await answer.read()
            return answer.status, answer.headers.get("x-served-by", "")

    async def until(self, *pods: str) -> None:
        """Wait until exactly these pods are in the table."""
        for _ in range(500):
            if {endpoint.pod for endpoint in self.picker.pool.table.all(0.0)} == set(pods):
                return
            await asyncio.sleep(0.01)
        raise AssertionError({endpoint.pod for endpoint in self.picker.pool.table.all(0.0)})

    async def ready(self) -> None:
        for _ in range(300):
            if self.picker.health.ready:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it does not get ready")

    def add(self, *numbers: int) -> None:
        for number in numbers:
            self.api.put(PODS, pod(f"p{number}", self.pods.address(number)))


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, *flags: str, count: int = 3, config: str = "", before: Callable[[ApiServer], None] = lambda api: None
) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer().serving())
        before(api)
        pods = Pods()
        stack.push_async_callback(pods.stop)
        await pods.start(count)
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(api.kubeconfig("picker"))
        grpc, health, metrics, listen, admin = free_ports(5)
        arguments = ["--pool-name=pool", "--pool-namespace=ns", "--secure-serving=false", "--tracing=false"]
        arguments += [f"--grpc-port={grpc}", f"--grpc-health-port={health}", f"--metrics-port={metrics}"]
        arguments += ["--listen-address=127.0.0.1", "--drain-timeout=0s", "--health-checking", *flags]
        config = config or "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        options, _ = parse_serve([*arguments, "--config-text", config])
        picker = Picker(options, environment={"KUBECONFIG": str(kubeconfig)})
        await picker.start()
        stack.push_async_callback(picker.stop)
        gateway = Gateway("standalone", listen, admin, grpc, picker_tls=False)
        envoy = await stack.enter_async_context(Envoy(gateway, folder))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Cluster(api, pods, picker, envoy.url, client, metrics)


async def test_from_nothing_to_the_first_routed_request(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        assert not c.picker.health.ready
        assert (await c.ask())[0] == 503
        c.api.put(POOLS, pool("pool", c.pods.port))
        c.add(0, 1)
        began = time.monotonic()
        while (await c.ask())[0] != 200:
            assert time.monotonic() - began < 2.0
            await asyncio.sleep(0.01)
        routed = time.monotonic() - began
        await c.ready()
        print(f"from the last object: routed after {routed:.3f} s, ready after {time.monotonic() - began:.3f} s")
        await c.until("p0", "p1")
        seen = {(await c.ask())[1] for _ in range(30)}
        assert seen == {"0", "1"}


async def test_from_no_kinds_at_all_to_the_first_routed_request(tmp_path: Path) -> None:
    """The picker is there before the CRDs are."""

    def without(api: ApiServer) -> None:
        api.hidden = {POOLS, OBJECTIVES, REWRITES}

    async with cluster(tmp_path, before=without) as c:
        await asyncio.sleep(0.5)
        assert (await c.ask())[0] == 503
        c.add(0)
        c.api.hidden = set()
        c.api.put(POOLS, pool("pool", c.pods.port))
        began = time.monotonic()
        while (await c.ask())[0] != 200 or not c.picker.health.ready:
            assert time.monotonic() - began < 2.0
            await asyncio.sleep(0.01)


async def test_what_is_declared_is_known_before_the_picker_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rewrite that comes late would be requests for a model that nobody serves. The wait for it has an end."""
    rules = [{"targets": [{"modelRewrite": "m-v2"}]}]

    def declare(api: ApiServer) -> None:
        api.put(REWRITES, {"metadata": {"name": "canary"}, "spec": {"poolRef": {"name": "pool"}, "rules": rules}})
        api.broken = {REWRITES: 503}

    async with cluster(tmp_path, before=declare) as c:
        c.api.put(POOLS, pool("pool", c.pods.port))
        c.add(0)
        await c.until("p0")
        await asyncio.sleep(0.5)
        assert not c.picker.health.ready
        c.api.broken = {}
        await c.ready()
        assert c.picker._rewrites.target("m") == "m-v2"
    monkeypatch.setattr("epp.cli.kubernetes_mode._DECLARATIONS_SECONDS", 0.5)
    async with cluster(tmp_path, before=declare) as c:
        c.api.put(POOLS, pool("pool", c.pods.port))
        c.add(0)
        await c.ready()
        assert c.picker._rewrites.target("m") is None
        assert "ready without InferenceObjectives and InferenceModelRewrites" in caplog.text


GRPC_ONLY = """
from epp_plugins.parsers.openai import OpenAIParser


class GrpcOnly(OpenAIParser):
    type = "grpc-only"
    protocols = ("h2c",)
"""


async def test_servers_that_no_parser_understands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grpc_only.py").write_text(GRPC_ONLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "plugins: [{type: 'grpc_only:GrpcOnly', name: grpc}]\n"
        "requestHandler: {parsers: [{pluginRef: grpc}]}\n"
    )
    async with cluster(tmp_path, config=config) as c:
        c.api.put(POOLS, pool("pool", c.pods.port, appProtocol="http"))
        c.add(0)
        await c.until("p0")
        await asyncio.sleep(1.2)
        assert not c.picker.health.ready
        c.api.put(POOLS, pool("pool", c.pods.port, appProtocol="kubernetes.io/h2c"))
        for _ in range(100):
            if c.picker.health.ready:
                break
            await asyncio.sleep(0.05)
        assert c.picker.health.ready


async def test_objectives_and_rewrites(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        c.api.put(POOLS, pool("pool", c.pods.port))
        c.add(0)
        await c.until("p0")
        reference = {"name": "pool"}
        spec = {"poolRef": reference, "priority": -5}
        c.api.put(OBJECTIVES, {"metadata": {"name": "batch"}, "spec": spec})
        c.api.put(OBJECTIVES, {"metadata": {"name": "foreign"}, "spec": {"poolRef": {"name": "x"}, "priority": 9}})
        targets = [{"modelRewrite": "m-v2", "weight": 100}]
        rules = [{"matches": [{"model": {"value": "m"}}], "targets": targets}]
        c.api.put(REWRITES, {"metadata": {"name": "canary"}, "spec": {"poolRef": reference, "rules": rules}})
        objectives = c.picker._objectives
        for _ in range(300):
            if len(objectives) and c.picker._rewrites.size:
                break
            await asyncio.sleep(0.01)
        assert (objectives.priority("batch"), objectives.priority("foreign"), objectives.priority("none")) == (-5, 0, 0)
        assert (await c.ask(x_gateway_inference_objective="batch"))[0] == 200
        assert (await c.ask("other"))[0] == 200
        assert c.pods.models == ["m-v2", "other"]
        page = render_now(c.picker.registry).decode()
        decisions = [line for line in page.splitlines() if line.startswith("llm_d_epp_model_rewrite_decisions_total{")]
        assert len(decisions) == 1
        labels, _, count = decisions[0].partition("} ")
        assert labels.endswith('{model_name="m",model_rewrite_name="canary",target_model="m-v2"')
        assert float(count) == 1
        c.api.delete(REWRITES, "canary")
        for _ in range(300):
            if not c.picker._rewrites.size:
                break
            await asyncio.sleep(0.01)
        assert (await c.ask())[0] == 200
        assert c.pods.models[-1] == "m"


async def test_no_pick_fails_whatever_happens_to_the_api_server(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        c.api.put(POOLS, pool("pool", c.pods.port))
        c.add(0, 1)
        await c.until("p0", "p1")
        statuses: list[int] = []
        going = True

        async def load() -> None:
            while going:
                statuses.append((await c.ask())[0])
                await asyncio.sleep(0.005)

        clients = [asyncio.create_task(load()) for _ in range(3)]
        c.api.drop()
        await asyncio.sleep(0.2)
        c.api.status = 500
        c.api.drop()
        await asyncio.sleep(0.4)
        c.api.status = 0
        await c.api.stop()
        await asyncio.sleep(0.5)
        c.add(2)
        c.api.compact()
        await c.api.start()
        await c.until("p0", "p1", "p2")
        c.api.repeat_events = True
        c.api.put(PODS, pod("p0", c.pods.address(0), deletionTimestamp="2026-01-01T00:00:00Z"))
        await c.until("p1", "p2")
        c.api.swap_events = True
        c.api.put(PODS, pod("p0", c.pods.address(0), ready=False))
        c.api.put(PODS, pod("p0", c.pods.address(0)))
        await c.until("p0", "p1", "p2")
        for number, fault in enumerate(("429", "no such kind", "no rights", "expired token", "too old", "slow")):
            c.api.status = 429 if fault == "429" else 0
            c.api.hidden = {POOLS} if fault == "no such kind" else set()
            c.api.forbidden = {PODS} if fault == "no rights" else set()
            c.api.tokens = {"another": "picker"} if fault == "expired token" else None
            c.api.gone_in_stream = fault != "too old"  # else as an event of the watch
            c.api.delay = 0.2 if fault == "slow" else 0.0
            c.api.version += 1
            c.api.compact()
            c.api.drop()
            met = len(c.api.requests)
            await asyncio.sleep(0.4)
            assert len(c.api.requests) > met, fault
            c.api.status, c.api.hidden, c.api.forbidden, c.api.tokens, c.api.delay = 0, set(), set(), None, 0.0
            c.api.put(PODS, pod("p2", c.pods.address(2), ready=bool(number % 2)))  # it is caught up with
            await c.until(*(("p0", "p1", "p2") if number % 2 else ("p0", "p1")))
        going = False
        await asyncio.gather(*clients)
        assert set(statuses) == {200}
        assert len(statuses) > 50


@pytest.mark.parametrize("token", ["", "stranger", "weak", "reader"])
async def test_metrics_are_for_those_whom_the_api_server_allows(tmp_path: Path, token: str) -> None:
    async with cluster(tmp_path) as c:
        c.api.tokens = {"picker": "picker", "reader": "reader", "weak": "weak"}
        c.api.readers = {"reader"}
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"http://127.0.0.1:{c.metrics_port}"
        async with c.client.get(url + "/metrics", headers=headers) as answer:
            assert answer.status == {"": 401, "stranger": 401, "weak": 403, "reader": 200}[token]
            told = await answer.text()
        assert ("llm_d_epp_kubernetes_unreadable_objects 0" in told) == (token == "reader")
        async with c.client.get(url + "/readyz") as answer:
            assert answer.status == 503


async def test_declarations_from_a_file(tmp_path: Path) -> None:
    """Without Kubernetes the same manifests come from a file."""
    manifests: list[Any] = [
        {"kind": "InferenceObjective", "metadata": {"name": "vip"}, "spec": {"priority": 3}},
        {
            "kind": "InferenceModelRewrite",
            "metadata": {"name": "all"},
            "spec": {"rules": [{"targets": [{"modelRewrite": "small"}]}]},
        },
    ]
    path = tmp_path / "declarations.yaml"
    path.write_text("\n---\n".join(json.dumps(manifest) for manifest in manifests))
    flags = ("--pool-name=", "--endpoint-selector=app=vllm", f"--declarations-file={path}")
    environment_free = (*flags, "--endpoint-target-ports=8000")
    async with cluster(tmp_path, *environment_free) as c:
        assert c.picker._objectives.priority("vip") == 3
        assert c.picker._rewrites.target("anything") == "small"
        path.write_text(json.dumps(manifests[0]).replace("3", "4"))
        for _ in range(300):
            if c.picker._objectives.priority("vip") == 4:
                break
            await asyncio.sleep(0.02)
        assert c.picker._rewrites.target("anything") is None
        path.write_text("kind: Pod")
        await asyncio.sleep(1.3)
        assert c.picker._objectives.priority("vip") == 4
