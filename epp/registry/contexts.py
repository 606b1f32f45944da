"""What every plugin is handed when it is built."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from epp.api.endpoints import EndpointTable
from epp.api.plugin import Clock, Plugin, PluginContext

Find = Callable[[str], Plugin[Any]]


class ContextFactory(Protocol):
    """Makes the context of one plugin."""

    def __call__(self, name: str, find: Find) -> PluginContext:
        """`find` gives other plugins by name."""


def contexts(
    *,
    table: EndpointTable,
    clock: Clock,
    rng: random.Random,
    metrics: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> ContextFactory:
    """The usual factory: one table and clock for all, for each plugin a generator of its own drawn from `rng`.

    With generators of their own, one more random number in one plugin does not change what the others draw.
    """

    def make(name: str, find: Find) -> PluginContext:
        return PluginContext(
            name=name,
            clock=clock,
            rng=random.Random(rng.getrandbits(64)),
            log=logging.getLogger(f"epp.plugins.{name}"),
            table=table,
            find=find,
            metrics=metrics,
            settings=settings or {},
        )

    return make
