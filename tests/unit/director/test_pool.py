"""A pool starts as a whole or not at all, and stops whatever happens."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

import epp
from epp.director.pool import Pool
from epp.telemetry.metrics import Registry
from epp.telemetry.recorder import MetricsRecorder, PluginRecorder
from epp.telemetry.request_metrics import RequestMetrics
from epp.testing import ManualClock, assemble


class Told(epp.Params, frozen=True):
    """What goes wrong."""

    fails: str = ""


class Starter(epp.Producer[Told]):
    """Writes down that it was started and stopped."""

    type = "starter"
    Params = Told

    def __init__(self, params: Told, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self.up = False

    def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        """Nothing."""

    async def start(self) -> None:
        if self.params.fails == "start":
            raise RuntimeError(f"{self.name} cannot start")
        self.up = True

    async def stop(self) -> None:
        self.up = False
        if self.params.fails == "stop":
            raise RuntimeError(f"{self.name} cannot stop")

    def ready(self) -> bool:
        if self.params.fails == "ready":
            raise RuntimeError(f"{self.name} does not know")
        return self.up


def pool(*plugins: dict[str, Any]) -> tuple[Pool, list[Starter]]:
    made = assemble(f"plugins: {[{'type': 'starter', **plugin} for plugin in plugins]}", types=[Starter])
    clock, registry, log = ManualClock(), Registry(), logging.getLogger("test.pool")
    metrics = RequestMetrics(registry)
    built = Pool(
        "p",
        made.assembly,
        made.table,
        recorder=MetricsRecorder(metrics, log, clock),
        timings=PluginRecorder(metrics, log, clock),
        clock=clock,
        rng=random.Random(0),
    )
    return built, [plugin for plugin in built.plugins.values() if isinstance(plugin, Starter)]


async def test_ready_between_start_and_stop() -> None:
    built, (one,) = pool({"name": "one"})
    assert not built.ready()
    await built.start()
    assert built.ready()
    one.up = False
    assert not built.ready()
    await built.stop()
    assert not built.synced


async def test_a_plugin_that_cannot_start_takes_the_others_down_again() -> None:
    built, starters = pool({"name": "one"}, {"name": "two", "parameters": {"fails": "start"}}, {"name": "three"})
    with pytest.raises(RuntimeError, match="two cannot start"):
        await built.start()
    assert not any(starter.up for starter in starters)
    assert not built.ready()


async def test_a_plugin_that_cannot_stop_keeps_none_running(caplog: pytest.LogCaptureFixture) -> None:
    built, starters = pool({"name": "one"}, {"name": "two", "parameters": {"fails": "stop"}})
    await built.start()
    await built.stop()
    assert not any(starter.up for starter in starters)
    assert "plugin two did not stop cleanly" in caplog.text


async def test_a_plugin_that_cannot_say_whether_it_is_ready_is_not(caplog: pytest.LogCaptureFixture) -> None:
    built, _ = pool({"name": "one"}, {"name": "two", "parameters": {"fails": "ready"}})
    await built.start()
    assert not built.ready()
    assert "two does not know" in caplog.text
    await built.stop()
