"""How often each endpoint is asked: the law that trades freshness for CPU. Pure arithmetic over columns.

With `c` the measured CPU seconds of one fetch, `n` the fetches of one round (endpoints times adaptive sources) and
`B` the budget in cores:

- idle (no pick in the pool for `idle_after`): every endpoint each `max(idle_interval, n·c/B)`;
- active: every endpoint each `base = max(active_interval, n·c/B)`;
- hot (picked since its last fetch began, or within `hot_for`): what the budget leaves after the others,
  `n_hot·c / (B - (n - n_hot)·c/base)`, but never more often than `refresh_interval` nor less often than `base`.

`refresh_interval` is the fastest rate there is: it bounds the other two from below as well. The collector then
leaves a server at least twice the time that its last answer took, and doubles the interval per failure in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from epp.api.endpoints import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    """Seconds, unless it says otherwise. Defaults are sized for 100 endpoints that are at most 250 ms old.

    `refresh_interval` is `--refresh-metrics-interval`. `active_interval` stays below the 200 ms at which the default
    saturation detector calls a value stale, `idle_interval` below the 2 s of `--metrics-staleness-threshold`; it also
    keeps connections open (uvicorn closes them after 5 s). `cpu_budget` is in cores and holds for the sum of all
    endpoints. `timeout` is for one fetch, connect included. `max_backoff` is the longest pause between two attempts at
    an endpoint that fails. `jitter` spreads each interval by this share in both directions. `max_body` is in bytes (a
    vLLM page has 80 KB).
    """

    refresh_interval: float = 0.05
    active_interval: float = 0.15
    idle_after: float = 5.0
    idle_interval: float = 1.5
    hot_for: float = 0.25
    cpu_budget: float = 0.2
    timeout: float = 1.0
    max_backoff: float = 5.0
    jitter: float = 0.1
    max_body: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("refresh_interval", "active_interval", "idle_interval", "cpu_budget", "timeout", "max_backoff"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0")
        if not 0 <= self.jitter < 1:
            raise ValueError("jitter must be in [0, 1)")


def is_active(settings: CollectorSettings, since_pick: FloatArray) -> bool:
    """Whether any endpoint was picked within `idle_after`. `since_pick`: seconds since the last pick, inf: never."""
    return bool(since_pick.size) and bool(since_pick.min() <= settings.idle_after)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two fetches of an endpoint that is hot, and of any other one."""

    hot: float
    rest: float


@overload
def is_hot(settings: CollectorSettings, since_pick: float, since_fetch: float) -> bool: ...
@overload
def is_hot(settings: CollectorSettings, since_pick: FloatArray, since_fetch: FloatArray) -> BoolArray: ...
def is_hot(settings: CollectorSettings, since_pick: Any, since_fetch: Any) -> Any:
    """Whether an endpoint of an active pool is hot, or which of many; seconds since its last pick and last fetch."""
    hot = (since_pick <= settings.hot_for) | (since_pick < since_fetch)
    # A pick that a dead endpoint never answered does not keep it hot.
    return hot & (since_pick <= settings.idle_after)


def pace(settings: CollectorSettings, *, cost: float, sources: int, count: int, hot: int, active: bool) -> Pace:
    """The law, for a pool of `count` endpoints of which `hot` are so; with none, what the first one would get.

    `cost` is CPU seconds per fetch, `sources` the number of adaptive sources every endpoint is fetched from.
    """
    fetch = sources * cost
    slowest = settings.active_interval if active else settings.idle_interval
    rest = max(slowest, settings.refresh_interval, count * fetch / settings.cpu_budget)
    if not active:
        return Pace(rest, rest)
    hot = max(hot, 1)
    left = settings.cpu_budget - (count - hot) * fetch / rest
    fastest = hot * fetch / left if left > 0 else rest
    return Pace(min(max(fastest, settings.refresh_interval), rest), rest)


def backed_off(settings: CollectorSettings, wanted: FloatArray, failures: FloatArray) -> FloatArray:
    """The intervals doubled for every failure in a row, up to `max_backoff` (or what was wanted, if that is longer)."""
    if not failures.any():
        return wanted
    grown = np.maximum(wanted, 0.1) * np.exp2(np.minimum(failures, 16.0))
    result: FloatArray = np.where(failures > 0, np.maximum(np.minimum(grown, settings.max_backoff), wanted), wanted)
    return result
