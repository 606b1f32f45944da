"""The figures for people (a table) and for programs (JSON)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from benchmarks.figures import Cell, Outcome, Verdict
from benchmarks.machine import Machine
from epp.cli.output import table


class Report(msgspec.Struct):
    """A run: where, how, and what came out."""

    machine: Machine
    scale: str
    command: str
    outcomes: list[Outcome] = []

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all scenarios."""
        return [verdict for outcome in self.outcomes for verdict in outcome.verdicts]

    @property
    def errors(self) -> list[Outcome]:
        """Scenarios that broke off."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]


def to_json(report: Report) -> bytes:
    """Indented JSON; figures that are no numbers are null."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def save(report: Report, path: Path) -> None:
    """Write the JSON, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.write_bytes(to_json(report))
    fresh.replace(path)


def show_outcome(outcome: Outcome, out: IO[str]) -> None:
    """The tables of one scenario."""
    for each in outcome.tables:
        header = [column.title for column in each.columns]
        rows = [[cell(row.cells.get(column.key), column.digits) for column in each.columns] for row in each.rows]
        table(f"{outcome.scenario}: {each.title}", header, rows, out)
        print(file=out)
    if outcome.error is not None:
        print(f"{outcome.scenario} broke off: {outcome.error}\n", file=out)


def show_verdicts(verdicts: Sequence[Verdict], out: IO[str]) -> None:
    """What must hold, and whether it does."""
    if not verdicts:
        return
    rows = [
        [
            "pass" if verdict.passed else "FAIL",
            verdict.name,
            f"{significant(verdict.value)} {verdict.unit}".rstrip(),
            f"{significant(verdict.at_most)} {verdict.unit}".rstrip(),
        ]
        for verdict in verdicts
    ]
    table("must hold", ["", "figure", "measured", "at most"], rows, out)
    print(file=out)


def show_machine(report: Report, out: IO[str]) -> None:
    """One line on where the figures come from."""
    machine = report.machine
    print(
        f"{machine.cores} cores of {machine.cpu}, {machine.memory_gib:.0f} GiB, {machine.kernel}, {machine.python}, "
        f"commit {machine.commit}, {machine.date}, load before: {machine.load}, scale {report.scale}\n",
        file=out,
    )


def cell(value: Cell, digits: int) -> str:
    """A cell of a table; `-` where there is no figure."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.{digits}f}".replace(",", " ")


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits, without an exponent."""
    if not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}".replace(",", " ")
    return text.rstrip("0").rstrip(".") if "." in text else text
