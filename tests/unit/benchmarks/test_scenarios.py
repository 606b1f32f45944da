"""Every scenario runs end to end in its smallest form: real processes, real figures that mean nothing."""

import math
from pathlib import Path

import pytest

from benchmarks.bench import Bench, Scale
from benchmarks.figures import Outcome
from benchmarks.scenarios import SCENARIOS


@pytest.mark.parametrize("name", list(SCENARIOS))
async def test_it_runs(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    scenario = SCENARIOS[name]
    outcome = Outcome(name, scenario.summary)
    await scenario.run(Bench(Scale.SMOKE, tmp_path, said.append, requests=200), outcome)
    assert said
    assert outcome.tables
    for table in outcome.tables:
        assert table.rows
        for row in table.rows:
            assert set(row.cells) == {column.key for column in table.columns}
            assert row.command
    if name in ("memory", "soak"):  # what must hold at any size
        exact = [verdict for verdict in outcome.verdicts if verdict.at_most == 0]
        assert exact
        assert all(verdict.passed for verdict in exact), exact
    if name not in ("grid", "idle", "headline"):
        assert all(math.isfinite(verdict.value) for verdict in outcome.verdicts)
