"""One plugin, checked and built as the picker does it."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any, TypeVar

from epp.api.endpoints import EndpointTable
from epp.api.plugin import Clock, Plugin, PluginContext
from epp.config.decode import decode
from epp.config.document import Document
from epp.registry.inspection import verify
from epp.telemetry.metrics import Registry
from epp.testing.clock import ManualClock

PluginT = TypeVar("PluginT", bound=Plugin[Any])


def context(
    name: str,
    *,
    table: EndpointTable | None = None,
    clock: Clock | None = None,
    others: Mapping[str, Plugin[Any]] | None = None,
    seed: int = 0,
    metrics: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> PluginContext:
    """A context with a still clock, a seeded generator and a real metrics registry. `others` is what `find` finds."""
    found = others or {}

    def find(wanted: str) -> Plugin[Any]:
        if wanted not in found:
            raise LookupError(f"{name} asks for the plugin `{wanted}`: hand it over in `others`")
        return found[wanted]

    return PluginContext(
        name=name,
        clock=clock or ManualClock(),
        rng=random.Random(seed),
        log=logging.getLogger(f"epp.plugins.{name}"),
        table=EndpointTable() if table is None else table,
        find=find,
        metrics=Registry() if metrics is None else metrics,
        settings=settings or {},
    )


def plugin(
    kind: type[PluginT],
    parameters: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    table: EndpointTable | None = None,
    clock: Clock | None = None,
    others: Mapping[str, Plugin[Any]] | None = None,
    seed: int = 0,
    metrics: Any = None,
) -> PluginT:
    """Build a plugin with `parameters` as they would stand in the file (camelCase).

    Raises `ConfigError` for a class that does not keep the contract and for parameters it does not take.
    """
    verify(kind)
    params = decode(
        dict(parameters or {}), kind.Params, Document({}), "parameters", aliases=getattr(kind, "param_aliases", None)
    )
    made = context(name or kind.type, table=table, clock=clock, others=others, seed=seed, metrics=metrics)
    return kind(params, made)
