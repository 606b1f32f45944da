"""What a scenario is given: how thorough to be, room for files, and ways to measure."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import processes
from benchmarks.figures import Row
from benchmarks.load.generator import Load, measure
from benchmarks.processes import Target
from benchmarks.procfs import cpu_seconds
from epp.demo.picker import PickerProcess

Figures = dict[str, Any]
T = TypeVar("T")

ONLY_PICKS = ("--scrape-cpu-budget=0.001",)
"""Flags that all but switch collecting off, to see what requests cost alone, or what collecting costs."""


class Scale(StrEnum):
    """`smoke` shows that a scenario runs; its figures mean nothing. `quick` is for a look, `full` for publishing."""

    SMOKE = "smoke"
    QUICK = "quick"
    FULL = "full"


class WrongReplies(RuntimeError):
    """The server answered wrongly while it was measured: figures of broken work are no figures."""


@dataclass(slots=True)
class Bench:
    """`folder` is removed after the run. `say` reports progress. `requests`: of the soak, None for the scale's."""

    scale: Scale
    folder: Path
    say: Callable[[str], None]
    requests: int | None = None
    _numbers: itertools.count[int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self._numbers = itertools.count()

    def pick(self, *, smoke: T, quick: T, full: T) -> T:
        """One of three, by scale."""
        return {Scale.SMOKE: smoke, Scale.QUICK: quick, Scale.FULL: full}[self.scale]

    @property
    def rounds(self) -> int:
        """Repetitions whose median counts."""
        return self.pick(smoke=1, quick=3, full=5)

    def sized(self, load: Load) -> Load:
        """The load for as long as the scale measures."""
        seconds, warm_up = self.pick(smoke=(0.3, 0.1), quick=(2.0, 0.7), full=(3.0, 1.0))
        return replace(load, seconds=seconds, warm_up=warm_up)

    def subfolder(self) -> Path:
        """A new empty folder, for one process."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    @asynccontextmanager
    async def picker(
        self, endpoints: int, *, config: str = "", flags: Sequence[str] = (), tls: bool = False
    ) -> AsyncIterator[PickerProcess]:
        """A picker over static servers, which are a process of their own."""
        folder = self.subfolder()
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(processes.static_servers(folder, endpoints))
            yield await stack.enter_async_context(processes.picker(folder, served, config=config, flags=flags, tls=tls))

    async def run(self, target: Target, load: Load) -> Figures:
        """One measurement. Raises `WrongReplies`."""
        figures = await measure(replace(load, tls=target.tls), target.port, target.pid)
        if figures["errs"]:
            wrong = "; ".join(figures.get("messages", ()))
            raise WrongReplies(f"{target.name}: {figures['errs']} wrong replies or lost streams ({wrong}): {load}")
        return figures

    async def side_by_side(
        self, what: str, targets: Mapping[str, Target], load: Load, rounds: int | None = None
    ) -> dict[str, list[Figures]]:
        """The same load on each target in turn, A B A B, so that a slow moment of the machine meets all alike."""
        runs: dict[str, list[Figures]] = {name: [] for name in targets}
        count = rounds or self.rounds
        for number in range(count):
            for name, target in targets.items():
                self.say(f"{what}: {name}, round {number + 1} of {count}")
                runs[name].append(await self.run(target, load))
        return runs

    async def cores(self, pid: int, seconds: float) -> float:
        """Mean number of cores that a process keeps busy over the next seconds."""
        loop = asyncio.get_running_loop()
        cpu, began = cpu_seconds(pid), loop.time()
        await asyncio.sleep(seconds)
        return (cpu_seconds(pid) - cpu) / (loop.time() - began)


def row(command: str | Load, **cells: Any) -> Row:
    """A row of a table."""
    return Row(cells, str(command))
