"""Filters narrow, weights add up, and a plugin that misbehaves is left out and counted."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import epp
from epp.scheduling.profile import SchedulingProfile
from epp.scheduling.scheduler import Scheduler


class Timings:
    def __init__(self) -> None:
        self.failures: list[tuple[str, str, str]] = []
        self.observed: dict[tuple[str, str], int] = {}

    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> Any:
        key = (extension_point, plugin_name)
        observed = self.observed

        class Child:
            def observe(self, value: float) -> None:
                assert value >= 0
                observed[key] = observed.get(key, 0) + 1

        return Child()

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        self.failures.append((extension_point, plugin_name, str(error)))

    def violated(self, extension_point: str, plugin_type: str, plugin_name: str, access: str, key: epp.DataKey) -> None:
        self.failures.append((extension_point, plugin_name, f"{access} {key}"))


def context(name: str, table: epp.EndpointTable) -> epp.PluginContext:
    def find(wanted: str) -> epp.Plugin[Any]:
        raise KeyError(wanted)

    return epp.PluginContext(
        name=name, clock=lambda: 0.0, rng=random.Random(1), log=logging.getLogger(name), table=table, find=find
    )


class Unhelpful:
    """Answers every question with an error of its own."""

    @property
    def shape(self) -> Any:
        raise OSError("not today")


class LambdaScorer(epp.Scorer[epp.NoParams]):
    type = "lambda-scorer"
    function: Callable[[epp.Endpoints], Any]

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        result: epp.Scores = self.function(endpoints)
        return result


class LambdaFilter(epp.Filter[epp.NoParams]):
    type = "lambda-filter"
    function: Callable[[epp.Endpoints], Any]

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        result: epp.BoolArray = self.function(endpoints)
        return result


class BestPicker(epp.Picker[epp.NoParams]):
    type = "best"
    positions: Any = "best"

    def pick(self, request: epp.InferenceRequest, endpoints: epp.Endpoints, scores: epp.FloatArray) -> Sequence[int]:
        if self.positions == "broken":
            raise RuntimeError("no picker today")
        wanted: Sequence[int] = [int(scores.argmax())] if self.positions == "best" else self.positions
        return wanted


class EveryProfile(epp.ProfileHandler[epp.NoParams]):
    type = "every"
    wanted = ("default",)

    def next_profiles(self, request: Any, profiles: Any, done: Any) -> Sequence[str]:
        return self.wanted

    def primary(self, request: Any, done: Any) -> str:
        return self.wanted[-1]


@pytest.fixture
def table() -> epp.EndpointTable:
    table = epp.EndpointTable(2)
    for i in range(4):
        table.add(epp.Endpoint(name=f"p{i}", address=f"10.0.0.{i}", port=8000))
    return table


@pytest.fixture
def request_() -> epp.InferenceRequest:
    return epp.InferenceRequest(
        id="r", headers={}, path="/v1/completions", body=b"", payload=epp.Payload(), received_at=0.0
    )


def make(table: epp.EndpointTable, timings: Timings, *, filters: Any = (), scorers: Any = ()) -> SchedulingProfile:
    def plugin(kind: Any, name: str, function: Any) -> Any:
        made = kind(epp.NoParams(), context(name, table))
        made.function = function
        return made

    return SchedulingProfile(
        "default",
        filters=[plugin(LambdaFilter, f"f{i}", f) for i, f in enumerate(filters)],
        scorers=[(plugin(LambdaScorer, f"s{i}", f), weight) for i, (f, weight) in enumerate(scorers)],
        picker=BestPicker(epp.NoParams(), context("best", table)),
        timings=timings,
        clock=lambda: 0.0,
    )


def test_weighted_sum_decides(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    timings = Timings()
    profile = make(
        table,
        timings,
        scorers=[(lambda e: np.array([1.0, 0, 0, 0]), 1.0), (lambda e: np.array([0, 0, 0.6, 0.0]), 2.0)],
    )
    result = profile.run(request_, table.all(0.0))
    assert result.picked[0].name == "p2"
    assert result.scores.tolist() == pytest.approx([1.0, 0, 1.2, 0])
    assert set(result.by_scorer) == {"s0", "s1"}
    assert timings.observed == {("Scorer", "s0"): 1, ("Scorer", "s1"): 1, ("Picker", "best"): 1}


def test_scores_are_clamped_and_missing_data_is_neutral(
    table: epp.EndpointTable, request_: epp.InferenceRequest
) -> None:
    profile = make(
        table,
        Timings(),
        scorers=[
            (lambda e: np.array([5.0, -3.0, 0.5, np.nan]), 1.0),
            (lambda e: np.full(4, np.nan), 9.0),
        ],
    )
    result = profile.run(request_, table.all(0.0))
    assert result.scores.tolist() == pytest.approx([1.0, 0.0, 0.5, 0.5])


def test_filters_see_the_survivors_of_the_one_before(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    seen: list[int] = []

    def second(endpoints: epp.Endpoints) -> epp.BoolArray:
        seen.append(len(endpoints))
        return np.array([False, True])

    profile = make(
        table,
        Timings(),
        filters=[lambda e: np.array([True, False, False, True]), second],
        scorers=[(lambda e: np.ones(len(e)), 1.0)],
    )
    assert profile.run(request_, table.all(0.0)).picked[0].name == "p3"
    assert seen == [2]


def test_no_survivor_is_429_with_the_filters_name(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    profile = make(table, Timings(), filters=[lambda e: np.zeros(4, dtype=bool)])
    with pytest.raises(epp.ResourceExhausted, match="f0") as refusal:
        profile.run(request_, table.all(0.0))
    assert refusal.value.reason == "rejected-saturated"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda e: np.ones(3),
        lambda e: 1 / 0,
        lambda e: [1.0, 0.0, 0.0, 0.0],
        lambda e: None,
        lambda e: np.array(["a", "b", "c", "d"]),
        lambda e: np.array([1.0, None, 0.0, 0.0]),
        lambda e: np.ma.masked_array([1.0, 0.5, 0.0, 0.0], [True, False, False, False]),
        lambda e: Unhelpful(),
        lambda e: sys.exit("a library thinks that it is a command"),
    ],
)
def test_a_broken_scorer_is_left_out(wrong: Any, table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    timings = Timings()
    profile = make(table, timings, scorers=[(wrong, 5.0), (lambda e: np.array([0, 1.0, 0, 0]), 1.0)])
    assert profile.run(request_, table.all(0.0)).picked[0].name == "p1"
    assert [(point, name) for point, name, _ in timings.failures] == [("Scorer", "s0")]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda e: np.ones(4),
        lambda e: np.ones(3, dtype=bool),
        lambda e: 1 / 0,
        lambda e: [True, False, False, False],
        lambda e: None,
    ],
)
def test_a_broken_filter_is_left_out(wrong: Any, table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    timings = Timings()
    profile = make(table, timings, filters=[wrong], scorers=[(lambda e: np.array([0, 0, 0, 1.0]), 1.0)])
    assert profile.run(request_, table.all(0.0)).picked[0].name == "p3"
    assert [(point, name) for point, name, _ in timings.failures] == [("Filter", "f0")]


@pytest.mark.parametrize("wrong", ["broken", None, [], 3, [4], [0, 9], ["a"], [None]])
def test_a_broken_picker_falls_back_to_the_best_score(
    wrong: Any, table: epp.EndpointTable, request_: epp.InferenceRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = Timings()
    monkeypatch.setattr(BestPicker, "positions", wrong)
    profile = make(table, timings, scorers=[(lambda e: np.array([0, 1.0, 0, 0]), 1.0)])
    assert profile.run(request_, table.all(0.0)).picked[0].name == "p1"
    assert [failure[:2] for failure in timings.failures] == [("Picker", "best")]


def scheduler(table: epp.EndpointTable, profiles: dict[str, SchedulingProfile], wanted: tuple[str, ...]) -> Scheduler:
    handler = EveryProfile(epp.NoParams(), context("every", table))
    handler.wanted = wanted
    return Scheduler(profiles, handler, timings=Timings(), clock=lambda: 0.0)


def test_scheduler_runs_each_profile_once(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    good = make(table, Timings(), scorers=[(lambda e: np.array([0, 0, 1.0, 0]), 1.0)])
    result = scheduler(table, {"a": good, "default": good}, ("a", "default")).schedule(request_, table.all(0.0))
    assert result.primary == "default"
    assert result.target.picked[0].name == "p2"
    assert set(result.profiles) == {"a", "default"}


def test_the_primary_profiles_refusal_is_the_answer(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    empty = make(table, Timings(), filters=[lambda e: np.zeros(4, dtype=bool)])
    with pytest.raises(epp.ResourceExhausted, match="f0"):
        scheduler(table, {"default": empty}, ("default",)).schedule(request_, table.all(0.0))


def test_an_unknown_profile_is_named(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    with pytest.raises(epp.ResourceExhausted, match="'nowhere'"):
        scheduler(table, {}, ("nowhere",)).schedule(request_, table.all(0.0))


def test_no_profile_at_all_is_refused(table: epp.EndpointTable, request_: epp.InferenceRequest) -> None:
    with pytest.raises(epp.ResourceExhausted, match="no profile"):
        scheduler(table, {}, ()).schedule(request_, table.all(0.0))
