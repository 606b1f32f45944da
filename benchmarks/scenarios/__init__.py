"""One file per scenario; this is their table, in the order in which they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.figures import Outcome
from benchmarks.scenarios import (
    event_storm,
    freshness,
    grid,
    headline,
    idle,
    light,
    long_prompt,
    memory,
    prefix_index,
    scaling,
    shared_index,
    soak,
    tokenization,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`run` adds to the outcome as it measures, so that what was measured before an error is kept."""

    summary: str
    run: Callable[[Bench, Outcome], Awaitable[None]]


SCENARIOS = {
    "headline": Scenario(headline.SUMMARY, headline.run),
    "scaling": Scenario(scaling.SUMMARY, scaling.run),
    "long-prompt": Scenario(long_prompt.SUMMARY, long_prompt.run),
    "light": Scenario(light.SUMMARY, light.run),
    "idle": Scenario(idle.SUMMARY, idle.run),
    "freshness": Scenario(freshness.SUMMARY, freshness.run),
    "memory": Scenario(memory.SUMMARY, memory.run),
    "prefix-index": Scenario(prefix_index.SUMMARY, prefix_index.run),
    "shared-index": Scenario(shared_index.SUMMARY, shared_index.run),
    "tokenization": Scenario(tokenization.SUMMARY, tokenization.run),
    "event-storm": Scenario(event_storm.SUMMARY, event_storm.run),
    "grid": Scenario(grid.SUMMARY, grid.run),
    "soak": Scenario(soak.SUMMARY, soak.run),
}
