"""Tables for people, JSON for programs."""

import io
import json
import math
from pathlib import Path

import pytest

from benchmarks.bench import row
from benchmarks.figures import Outcome, Table, bound, columns
from benchmarks.machine import Machine, describe
from benchmarks.progress import Progress
from benchmarks.report import Report, cell, save, show_machine, show_outcome, show_verdicts, significant, to_json

MACHINE = Machine("CPU", 2, 24.0, "Linux 6", "CPython 3.11", "abc", "2026-01-01T00:00:00+00:00", 0.1, {"epp": "0.1"})


def outcome() -> Outcome:
    table = Table(
        "costs", columns(("name", "name"), ("cpu", "CPU us", 1)), [row("load -k 16", name="epp", cpu=1234.56)]
    )
    return Outcome("headline", "what it costs", [table], [bound("cost", 3.0, "ms", 5.0, "load -k 16")])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_columns() -> None:
    out = io.StringIO()
    show_outcome(outcome(), out)
    assert out.getvalue() == "headline: costs:\nNAME  CPU US\nepp   1 234.6\n\n"


def test_a_terminal_gets_a_drawn_table() -> None:
    out = Terminal()
    show_outcome(outcome(), out)
    assert "┃" in out.getvalue()
    assert "1 234.6" in out.getvalue()


def test_a_scenario_that_broke_off_says_why() -> None:
    broken = outcome()
    broken.error = "LoadError: gone"
    out = io.StringIO()
    show_outcome(broken, out)
    assert "headline broke off: LoadError: gone" in out.getvalue()


def test_verdicts_stand_beside_their_figures() -> None:
    out = io.StringIO()
    show_verdicts([bound("cost", 3.0, "ms", 5.0), bound("ratio", 0.2, "", 0.15)], out)
    lines = [line.split() for line in out.getvalue().splitlines()[2:4]]
    assert lines == [["pass", "cost", "3", "ms", "5", "ms"], ["FAIL", "ratio", "0.2", "0.15"]]


def test_without_verdicts_there_is_no_table() -> None:
    out = io.StringIO()
    show_verdicts([], out)
    assert out.getvalue() == ""


def test_json_has_every_figure_with_its_command(tmp_path: Path) -> None:
    report = Report(MACHINE, "full", "python -m benchmarks headline", [outcome()])
    path = tmp_path / "out" / "bench.json"
    save(report, path)
    loaded = json.loads(path.read_bytes())
    assert loaded["machine"]["commit"] == "abc"
    assert loaded["outcomes"][0]["tables"][0]["rows"] == [
        {"cells": {"name": "epp", "cpu": 1234.56}, "command": "load -k 16"}
    ]
    assert loaded["outcomes"][0]["verdicts"][0]["passed"] is True
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_number_is_null() -> None:
    report = Report(MACHINE, "full", "", [Outcome("x", "", verdicts=[bound("v", math.nan, "", 1)])])
    assert json.loads(to_json(report))["outcomes"][0]["verdicts"][0]["value"] is None


def test_a_report_gathers_verdicts_and_errors() -> None:
    broken = Outcome("x", "", error="E")
    report = Report(MACHINE, "full", "", [outcome(), broken])
    assert [verdict.name for verdict in report.verdicts] == ["cost"]
    assert report.errors == [broken]


def test_the_machine_is_one_line() -> None:
    out = io.StringIO()
    show_machine(Report(MACHINE, "quick", ""), out)
    assert out.getvalue().startswith("2 cores of CPU, 24 GiB, Linux 6, CPython 3.11, commit abc, ")
    assert out.getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(None, 0, "-"), (math.nan, 2, "-"), ("off", 0, "off"), (12345, 0, "12 345"), (0.5, 2, "0.50")],
)
def test_cells(value: float | str | None, digits: int, shown: str) -> None:
    assert cell(value, digits) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (1.5, "1.5"), (123.4, "123"), (2910.4, "2 910"), (100, "100"), (math.inf, "-")],
)
def test_three_digits_count(value: float, shown: str) -> None:
    assert significant(value) == shown


def test_this_machine_is_described_without_its_name(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    machine = describe(tmp_path, info)
    assert machine.cpu == "Some CPU @ 2 GHz"
    assert machine.cores >= 1
    assert machine.commit == "unknown"  # not a checkout
    assert machine.versions["numpy"]
    info.write_text("")
    assert describe(tmp_path, info).cpu


def test_progress_in_a_pipe_is_lines() -> None:
    out = io.StringIO()
    progress = Progress(out)
    progress("one")
    progress("two")
    progress.clear()
    assert out.getvalue() == "[00:00] one\n[00:00] two\n"


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    out = Terminal()
    progress = Progress(out)
    progress("a longer one")
    progress("two")
    progress.clear()
    progress.clear()
    assert out.getvalue() == "\r[00:00] a longer one\r[00:00] two         \r" + " " * 11 + "\r"
