"""A whole configuration with your plugin in it, and a scheduler over it."""

from __future__ import annotations

import inspect
import random
import textwrap
from collections.abc import Sequence
from typing import Any

from epp.api.endpoints import Endpoints, EndpointTable
from epp.api.keys import DataKey
from epp.api.plugin import Clock, Plugin, SchedulingResult
from epp.api.request import InferenceRequest
from epp.config.load import load
from epp.config.schema import API_VERSION, KIND
from epp.registry.assembly import Assembly
from epp.registry.build import build
from epp.registry.catalog import Catalog
from epp.registry.contexts import contexts
from epp.scheduling.scheduler import scheduler_of
from epp.telemetry.metrics import Registry
from epp.testing.clock import ManualClock


class Assembled:
    """A built configuration. `assembly` is the real one, `table` its endpoints, `metrics` its registry."""

    def __init__(self, assembly: Assembly, table: EndpointTable, clock: Clock, metrics: Registry) -> None:
        self.assembly = assembly
        self.table = table
        self.clock = clock
        self.metrics = metrics

    def __getitem__(self, name: str) -> Plugin[Any]:
        """A plugin by its name."""
        return self.assembly.plugins.by_name[name]

    def schedule(self, request: InferenceRequest, endpoints: Endpoints) -> SchedulingResult:
        """Producers, then profiles, then the `on_picked` hooks, as for a real request; plugin errors are raised.

        `result.target.picked[0]` is the chosen endpoint, `result.target.by_scorer` tells what each scorer thought.
        """
        for producer in self.assembly.plugins.producers:
            waiting = producer.produce(request, endpoints)
            if waiting is not None:
                if inspect.iscoroutine(waiting):
                    waiting.close()
                raise NotImplementedError(f"{producer.name} waits: test its `produce` on its own")
        scheduler = scheduler_of(self.assembly.profiles, self.assembly.handler, timings=_Raising(), clock=self.clock)
        result = scheduler.schedule(request, endpoints)
        for plugin in self.assembly.plugins.by_name.values():
            plugin.on_picked(request, result)
        return result


def assemble(
    config: str,
    *,
    types: Sequence[type[Plugin[Any]]] = (),
    table: EndpointTable | None = None,
    clock: Clock | None = None,
    seed: int = 0,
    allow_experimental: bool = True,
) -> Assembled:
    """Build a configuration as the picker does, with everything installed plus `types`.

    `config` is YAML; `apiVersion` and `kind` may be left out. Raises `ConfigError`.
    """
    text = textwrap.dedent(config)
    if "apiVersion" not in text:
        text = (
            f"{{apiVersion: {API_VERSION}, kind: {KIND}}}"
            if not text.strip()
            else (f"apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")
        )
    catalog = Catalog.load()
    for kind in types:
        catalog.register(kind)
    into = EndpointTable() if table is None else table
    now = clock or ManualClock()
    metrics = Registry()
    assembly = build(
        load(text, "test configuration").config,
        catalog,
        context_factory=contexts(table=into, clock=now, rng=random.Random(seed), metrics=metrics),
        allow_experimental=allow_experimental,
    )
    return Assembled(assembly, into, now, metrics)


class _Raising:
    """Timings that nobody looks at; a failing plugin fails the test instead of being left out."""

    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> _Raising:
        return self

    def observe(self, value: float) -> None:
        pass

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        raise error

    def violated(self, extension_point: str, plugin_type: str, plugin_name: str, access: str, key: DataKey) -> None:
        raise AssertionError(f"{plugin_name} may not {access} {key} in {extension_point}: it does not declare it")
