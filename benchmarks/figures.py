"""What a scenario brings back: tables of figures, and verdicts that compare a figure with what it must not exceed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import msgspec

Cell = str | float | int | None


class Column(msgspec.Struct, frozen=True):
    """One column: `key` of the rows, its `title` with the unit, `digits` after the point."""

    key: str
    title: str
    digits: int = 0


class Row(msgspec.Struct, frozen=True):
    """One measurement: its cells by column key, and the command whose figures they are."""

    cells: dict[str, Cell]
    command: str


class Table(msgspec.Struct, frozen=True):
    """Measurements of one kind."""

    title: str
    columns: tuple[Column, ...]
    rows: list[Row]


class Verdict(msgspec.Struct, frozen=True):
    """A figure and the most it may be. `passed` follows from both; it is a field so that JSON has it."""

    name: str
    value: float
    unit: str
    at_most: float
    passed: bool
    command: str = ""


class Outcome(msgspec.Struct):
    """All of one scenario. `error`: why it has no or not all figures."""

    scenario: str
    summary: str
    tables: list[Table] = []
    verdicts: list[Verdict] = []
    seconds: float = 0.0
    error: str | None = None


def columns(*specs: tuple[str, str] | tuple[str, str, int]) -> tuple[Column, ...]:
    """`(key, title)` or `(key, title, digits)` each."""
    return tuple(Column(*spec) for spec in specs)


def bound(name: str, value: float, unit: str, at_most: float, command: str = "") -> Verdict:
    """Passed when the value is at most the bound; NaN is not."""
    return Verdict(name, value, unit, at_most, bool(value <= at_most), command)


def middle(runs: Iterable[dict[str, Any]], key: str) -> float:
    """Median of a figure over repetitions."""
    return float(median(run[key] for run in runs))


def paired_ratio(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], key: str) -> float:
    """Median of the ratios of runs that stood side by side: what slowed both in one round cancels out.

    ValueError when the two have not been measured equally often, or not at all.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} runs make no pairs")
    return float(median(a[key] / b[key] if b[key] else float("nan") for a, b in zip(ours, theirs, strict=True)))
