"""`python -m benchmarks`: which scenarios, how thoroughly, and where the figures go."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report as reporting
from benchmarks.bench import Bench, Scale
from benchmarks.debian_packages import MissingToolError
from benchmarks.figures import Outcome
from benchmarks.load.generator import build
from benchmarks.machine import describe
from benchmarks.progress import Progress
from benchmarks.scenarios import SCENARIOS, Scenario
from epp.cli.output import table
from epp.config.errors import did_you_mean

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "out" / "bench.json"


def main(argv: Sequence[str]) -> int:
    """0: measured. 1: a scenario broke off, or with `--check` a figure exceeds its bound. 2: bad arguments."""
    options = parser().parse_args(argv)
    if options.list:
        rows = [[name, scenario.summary] for name, scenario in SCENARIOS.items()]
        table("scenarios", ["name", "measures"], rows)
        return 0
    for name in options.names:
        if name not in SCENARIOS:
            hint = did_you_mean(name, SCENARIOS) or "--list shows all"
            print(f"benchmarks: no scenario {name!r} ({hint})", file=sys.stderr)
            return 2
    try:
        build()
    except MissingToolError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    chosen = {name: SCENARIOS[name] for name in options.names or SCENARIOS}
    command = shlex.join(["python", "-m", "benchmarks", *argv])
    report = reporting.Report(describe(ROOT), options.scale.value, command)
    as_text = options.output == "table"
    progress = Progress(sys.stderr)
    try:
        for name, scenario in chosen.items():
            outcome = asyncio.run(_measure(name, scenario, options, progress))
            report.outcomes.append(outcome)
            reporting.save(report, options.file)
            progress.clear()
            if as_text:
                reporting.show_outcome(outcome, sys.stdout)
    except KeyboardInterrupt:
        print("benchmarks: interrupted; what was measured before is kept", file=sys.stderr)
        return 130
    if as_text:
        reporting.show_verdicts(report.verdicts, sys.stdout)
        reporting.show_machine(report, sys.stdout)
        print(f"figures with their commands: {options.file}")
    else:
        sys.stdout.write(reporting.to_json(report).decode())
    failed = options.check and not all(verdict.passed for verdict in report.verdicts)
    return 1 if report.errors or failed else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="CPU per request, latency, memory of the picker, beside a trivial picker on grpc.aio.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="scenarios to run; all when none is given")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        "--quick", dest="scale", action="store_const", const=Scale.QUICK, help="fewer cells and shorter runs"
    )
    scale.add_argument(
        "--smoke", dest="scale", action="store_const", const=Scale.SMOKE, help="only show that everything runs"
    )
    parser.set_defaults(scale=Scale.FULL)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a figure exceeds its bound")
    parser.add_argument("--output", choices=("table", "json"), default="table", help="what is printed")
    parser.add_argument("--file", type=Path, default=RESULTS, help="where the JSON goes (out/bench.json)")
    parser.add_argument("--requests", type=_positive, help="requests of the soak (300 000; quick 30 000)")
    return parser


def _positive(text: str) -> int:
    digits = text.replace("_", "")
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(digits)


async def _measure(name: str, scenario: Scenario, options: argparse.Namespace, progress: Progress) -> Outcome:
    """One scenario; what it raises ends it, not the run."""
    outcome = Outcome(name, scenario.summary)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="epp-bench-") as folder:
        bench = Bench(options.scale, Path(folder), lambda text: progress(f"{name}: {text}"), options.requests)
        try:
            await scenario.run(bench, outcome)
        except Exception as error:  # the others are still worth measuring
            outcome.error = f"{type(error).__name__}: {error}"
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome
