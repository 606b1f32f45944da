"""Plugins that hear of objects of the Kubernetes API."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import epp
from epp.kubernetes import notifications
from epp.kubernetes.connection import connect
from epp.kubernetes.notifications import ObjectNotifications
from epp.telemetry.metrics import Registry
from epp.testing import assemble
from tests.kubernetes.api_server import ApiServer

MAPS = "/api/v1/namespaces/{}/configmaps"
SETS = "/apis/apps/v1/namespaces/{}/deployments"


class Diary(epp.ObjectExtractor[epp.NoParams]):
    """Writes down what it hears."""

    type = "diary"

    def __init__(self, params: epp.NoParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self.heard: list[str] = []

    def object_changed(self, obj: Mapping[str, Any]) -> None:
        self.heard.append(f"{obj['metadata']['name']}={obj.get('data', {}).get('x')}")

    def object_removed(self, obj: Mapping[str, Any]) -> None:
        self.heard.append(f"-{obj['metadata']['name']}")


class Broken(epp.ObjectExtractor[epp.NoParams]):
    """Fails whatever it hears."""

    type = "broken"

    def object_changed(self, obj: Mapping[str, Any]) -> None:
        raise RuntimeError("cannot")


CONFIG = """
plugins:
- {type: k8s-notification-source, name: maps, parameters: {version: v1, kind: ConfigMap}}
- {type: k8s-notification-source, name: sets, parameters: {group: apps, version: v1, kind: Deployment}}
- {type: broken}
- {type: diary}
- {type: diary, name: second}
dataLayer:
  sources:
  - {pluginRef: maps, extractors: [{pluginRef: broken}, {pluginRef: diary}]}
  - {pluginRef: sets, extractors: [{pluginRef: second}]}
"""


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setattr(notifications, "_LOOK_AGAIN", 0.1)
    async with ApiServer().serving() as made:
        yield made


async def until(condition: Callable[[], bool], what: Callable[[], Any]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what())


def config_map(name: str, value: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": value}}


async def test_objects_are_told(server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = assemble(CONFIG, types=[Diary, Broken])
    assert not [warning for warning in made.assembly.warnings if "diary" in warning or "maps" in warning]
    assert not any(source.source.name in ("maps", "sets") for source in made.assembly.sources)  # nobody scrapes them
    first: Any = made["diary"]
    second: Any = made["second"]
    server.put(MAPS, config_map("a", "1"))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(server.kubeconfig())
    connection = await connect({"KUBECONFIG": str(kubeconfig)})
    told = ObjectNotifications(
        connection,
        "ns",
        made.assembly.object_sources,
        clock=time.monotonic,
        rng=random.Random(1),
        metrics=Registry(),
    )
    with caplog.at_level(logging.WARNING):
        told.start()
        await until(lambda: first.heard == ["a=1"], lambda: first.heard)
        await until(lambda: "sets waits for its kind" in caplog.text, lambda: caplog.text)
    assert caplog.text.count("broken failed") == 1
    server.put(MAPS, config_map("a", "2"))
    server.put(MAPS, config_map("b", "1"))
    server.delete(MAPS, "a")
    await until(lambda: first.heard[1:] == ["a=2", "b=1", "-a"], lambda: first.heard)
    server.put(SETS, {"kind": "Deployment", "metadata": {"name": "d"}})  # the group appears
    await until(lambda: second.heard == ["d=None"], lambda: second.heard)
    await server.stop()  # what happens meanwhile is told once, and nothing else
    server.put(MAPS, config_map("c", "1"))
    server.delete(MAPS, "b")
    server.put(MAPS, config_map("e", "1"))
    server.compact()
    await server.start()
    await until(lambda: sorted(first.heard[4:]) == ["-b", "c=1", "e=1"], lambda: first.heard)
    assert second.heard == ["d=None"]
    await told.stop()
    await connection.close()
