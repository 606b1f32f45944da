"""Two real vLLM servers for the whole run, and pickers of any configuration behind a real Envoy."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import PickerProcess
from epp.demo.ports import free_ports, free_ports_in_a_row
from tests.vllm.servers import VENV, VllmServer

BLOCKS = 256
"""KV blocks of each server: a fifth of what the conversations fill."""


@dataclass(slots=True)
class Gate:
    """A gateway with its picker."""

    url: str
    picker: PickerProcess

    async def state(self) -> dict[str, Any]:
        """What the precise producer says about itself."""
        url = f"http://127.0.0.1:{self.picker.metrics_port}/debug/plugins/state"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            plugins: dict[str, Any] = await answer.json()
        text = json.dumps(plugins)
        assert "selfCheck" in text, text[:1000]
        return _find(plugins, "selfCheck")


def _find(tree: Any, key: str) -> dict[str, Any]:
    """The mapping in `tree` that has `key`."""
    if isinstance(tree, dict):
        if key in tree:
            return tree
        tree = list(tree.values())
    for branch in tree if isinstance(tree, list) else ():
        found = _find(branch, key)
        if found:
            return found
    return {}


GateMaker = Callable[[str], AbstractAsyncContextManager[Gate]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    if not (VENV / "bin" / "vllm").exists():
        pytest.exit(f"no vLLM in {VENV}: run `make test-vllm`, which installs it", 2)
    script = Path(__file__).with_name("make_model.py")
    subprocess.run([VENV / "bin" / "python", script, folder], check=True, timeout=300)
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(models: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[VllmServer]]:
    folder = tmp_path_factory.mktemp("vllm")
    ports = free_ports(2)
    events, replay = free_ports_in_a_row(2), free_ports_in_a_row(2)
    pair = [VllmServer(port, rank, events, replay, models, folder, BLOCKS) for rank, port in enumerate(ports)]
    try:
        for server in pair:
            await server.start()
        await asyncio.gather(*(server.ready() for server in pair))
        yield pair
    finally:
        await asyncio.gather(*(server.stop() for server in pair))


@pytest.fixture
def gate(servers: list[VllmServer], tmp_path: Path) -> GateMaker:
    @asynccontextmanager
    async def made(kind: str) -> AsyncIterator[Gate]:
        folder = tmp_path / kind
        folder.mkdir()
        served = [server.served for server in servers]
        async with PickerProcess(folder, served, config=configuration(kind, servers), tls=False) as picker:
            listen, admin = free_ports(2)
            async with Envoy(Gateway("standalone", listen, admin, picker.grpc_port, picker_tls=False), folder) as envoy:
                yield Gate(envoy.url, picker)

    return made


def configuration(kind: str, servers: list[VllmServer]) -> str:
    """Routing: `precise`, `speculative` (that, and what was just sent counts before its events come), `approximate` or
    `random`."""
    plugins: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    if kind == "random":
        plugins += [{"type": "random-picker"}]
        refs += [{"pluginRef": "random-picker"}]
    else:
        scorers = {"prefix-cache-scorer": 3, "queue-scorer": 1, "kv-cache-utilization-scorer": 1}
        parameters: dict[str, dict[str, Any]] = {}
        if kind in ("precise", "speculative"):
            precise = "precise-prefix-cache-producer"
            parameters["prefix-cache-scorer"] = {"prefixMatchInfoProducerName": precise}
            url = f"http://{servers[0].address}"
            # The server that renders runs the model, too: it answers later than a renderer of its own would.
            exact = {"modelName": "tiny", "vllm": {"url": url, "budget": "2s"}}
            plugins += [{"type": "token-producer", "parameters": exact}]
            discovery = {"socketPort": servers[0].events, "replaySocketPort": servers[0].replay}
            events = {"podDiscoveryConfig": discovery}
            tokens = {"blockSizeTokens": 32}
            index = {"kvEventsConfig": events, "tokenProcessorConfig": tokens}
            plugins += [{"type": precise, "parameters": {**index, "speculativeIndexing": kind == "speculative"}}]
        plugins += [{"type": name, "parameters": parameters.get(name, {})} for name in scorers]
        refs += [{"pluginRef": name, "weight": weight} for name, weight in scorers.items()]
    # Tells which names are adapters before their first request does.
    plugins += [{"type": "models-data-source"}, {"type": "models-data-extractor"}]
    extractors = [{"pluginRef": "models-data-extractor"}]
    document = {
        "dataLayer": {"sources": [{"pluginRef": "models-data-source", "extractors": extractors}]},
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": plugins,
        "schedulingProfiles": [{"name": "default", "plugins": refs}],
    }
    return yaml.safe_dump(document, sort_keys=False)
