"""Arguments of `python -m benchmarks`, and what its exit status says."""

import argparse
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.bench import Bench, Scale
from benchmarks.debian_packages import MissingToolError
from benchmarks.figures import Outcome, bound
from benchmarks.scenarios import SCENARIOS, Scenario

Run = Callable[[Bench, Outcome], Awaitable[None]]


async def good(bench: Bench, outcome: Outcome) -> None:
    bench.say(f"scale {bench.scale}, requests {bench.requests}")
    outcome.verdicts.append(bound("cost", 1, "ms", 2))


async def dear(bench: Bench, outcome: Outcome) -> None:
    outcome.verdicts.append(bound("cost", 3, "ms", 2))


async def broken(bench: Bench, outcome: Outcome) -> None:
    outcome.verdicts.append(bound("cost", 1, "ms", 2))
    raise RuntimeError("the picker is gone")


async def interrupted(bench: Bench, outcome: Outcome) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the scenarios, and what would build the load generator."""

    def replace(**runs: Run) -> None:
        monkeypatch.setattr(cli, "SCENARIOS", {name: Scenario(name, run) for name, run in runs.items()})
        monkeypatch.setattr(cli, "build", lambda: Path("/dev/null"))

    return replace


def test_the_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown and scenario.summary in shown for name, scenario in SCENARIOS.items())


def test_an_unknown_scenario_is_refused_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["headlin"]) == 2
    assert "no scenario 'headlin'" in (said := capsys.readouterr().err)
    assert "headline" in said.replace("'headlin'", "")


@pytest.mark.parametrize("argv", [["--quick", "--smoke"], ["--requests", "0"], ["--output", "xml"], ["--nope"]])
def test_bad_arguments_end_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2


def test_full_is_the_default_and_numbers_may_have_underscores() -> None:
    options: argparse.Namespace = cli.parser().parse_args(["soak", "--requests", "300_000"])
    assert options.scale is Scale.FULL
    assert options.requests == 300_000


def test_figures_are_printed_and_saved(
    only: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(a=good, b=good)
    path = tmp_path / "bench.json"
    assert cli.main(["b", "--quick", "--requests", "5", "--file", str(path)]) == 0
    said = capsys.readouterr()
    assert "pass  cost" in said.out
    assert "b: scale quick, requests 5" in said.err
    saved = json.loads(path.read_bytes())
    assert [outcome["scenario"] for outcome in saved["outcomes"]] == ["b"]
    assert saved["command"].startswith("python -m benchmarks b --quick")


def test_json_goes_to_standard_output_alone(
    only: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(a=good)
    path = tmp_path / "bench.json"
    assert cli.main(["--output", "json", "--file", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_bytes())


def test_a_bound_is_an_error_only_when_asked(only: Callable[..., None], tmp_path: Path) -> None:
    only(a=dear)
    file = ["--file", str(tmp_path / "bench.json")]
    assert cli.main(file) == 0
    assert cli.main([*file, "--check"]) == 1


def test_a_scenario_that_breaks_off_keeps_its_figures_and_the_others(
    only: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(a=broken, b=good)
    path = tmp_path / "bench.json"
    assert cli.main(["--file", str(path)]) == 1
    assert "a broke off: RuntimeError: the picker is gone" in capsys.readouterr().out
    outcomes = json.loads(path.read_bytes())["outcomes"]
    assert [len(outcome["verdicts"]) for outcome in outcomes] == [1, 1]


def test_an_interrupt_keeps_what_was_measured(
    only: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(a=good, b=interrupted)
    path = tmp_path / "bench.json"
    assert cli.main(["--file", str(path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(json.loads(path.read_bytes())["outcomes"]) == 1


def test_a_missing_compiler_is_told(
    only: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(a=good)

    def missing() -> Path:
        raise MissingToolError("no g++: install g++")

    monkeypatch.setattr(cli, "build", missing)
    assert cli.main([]) == 1
    assert "install g++" in capsys.readouterr().err
