"""The configurations to start from: they load, build, and decide as they say."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import epp
from epp.config import load, load_file
from epp.registry import Catalog, build, contexts
from epp.telemetry.metrics import Registry
from epp.testing import Assembled, ManualClock, assemble, endpoints, request

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = sorted(CONFIGS.glob("*.yaml"))


def preset(name: str) -> Assembled:
    return assemble((CONFIGS / name).read_text())


def test_they_are_found() -> None:
    assert {"default-epp.yaml", "weighted-epp.yaml"} <= {path.name for path in PRESETS}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_builds_without_experimental_plugins_and_without_warnings(path: Path) -> None:
    factory = contexts(table=epp.EndpointTable(), clock=ManualClock(), rng=random.Random(1), metrics=Registry())
    made = build(load_file(path).config, Catalog.load(), context_factory=factory)
    assert made.warnings == ()
    assert made.profiles


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_decides(path: Path) -> None:
    made = assemble(path.read_text())
    pool = endpoints(5, waiting=[0, 1, 2, 3, 4], kv_usage=[0.1] * 5, table=made.table)
    result = made.schedule(request("Tell me a story. " * 100), pool)
    assert len(result.target.picked) == 1
    assert np.isfinite(result.target.scores).all()


def test_default_is_what_no_configuration_means() -> None:
    factory = contexts(table=epp.EndpointTable(), clock=ManualClock(), rng=random.Random(1), metrics=Registry())
    empty = build(load("", "no text").config, Catalog.load(), context_factory=factory)
    written = preset("default-epp.yaml").assembly
    for made in (written, empty):
        assert [(scorer.type, weight) for scorer, weight in made.profiles[0].scorers] == [
            ("queue-scorer", 2),
            ("kv-cache-utilization-scorer", 2),
            ("prefix-cache-scorer", 3),
        ]
        assert made.profiles[0].picker.type == "max-score-picker"
    assert {p.type for p in written.plugins.by_name.values()} == {p.type for p in empty.plugins.by_name.values()}


def test_weighted_is_the_sum_of_its_four_terms() -> None:
    made = preset("weighted-epp.yaml")
    scorers = [(scorer.type, weight) for scorer, weight in made.assembly.profiles[0].scorers]
    assert scorers == [
        ("active-request-scorer", 0.3),
        ("prefix-cache-scorer", 0.4),
        ("network-latency-scorer", 0.2),
        ("kv-cache-utilization-scorer", 0.1),
    ]
    pool = endpoints(inflight_requests=[4, 0, 2], rtt=[0.001, 0.041, 0.011], kv_usage=[0.5, 0.9, 0.0], table=made.table)
    result = made.schedule(request("Tell me a story. " * 100), pool)
    load, cache, network, memory = [0.0, 1.0, 0.5], 0.0, [1.0, 0.0, 0.75], [0.5, 0.1, 1.0]
    expected = [0.3 * a + 0.4 * cache + 0.2 * b + 0.1 * c for a, b, c in zip(load, network, memory, strict=True)]
    assert result.target.scores == pytest.approx(expected)
    assert result.target.picked[0].name == "pod-2-rank-0"

    again = made.schedule(request("Tell me a story. " * 100), made.table.all(1000.0))
    cached = again.target.by_scorer["prefix-cache-scorer"]
    assert cached[2] > 0
    assert cached[:2].tolist() == [0.0, 0.0]


def test_shedding_counts_what_is_in_flight() -> None:
    detector = preset("shedding.yaml").assembly.saturation_detector
    assert detector.type == "concurrency-detector"
    assert detector.saturation(endpoints(inflight_requests=[132, 66])) == 0.75
