"""A class that does not keep the contract is refused at start, with the fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import epp
from epp.config.roles import Role
from epp.registry import roles_of, verify


class Good(epp.Scorer["Good.Params"]):
    type = "good"

    class Params(epp.Params, frozen=True):
        threshold: int = 1

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        return endpoints.waiting

    async def start(self) -> None:
        """Overrides are fine as long as they are of the same kind."""

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return ()


class Several(epp.EndpointScorer[epp.NoParams], epp.Filter[epp.NoParams]):
    type = "several"
    stability = "alpha"
    produces = (epp.DataKey("a", "b"),)

    def score_endpoint(self, request: epp.InferenceRequest, endpoint: epp.Endpoint, *extra: Any) -> float:
        return 1.0

    @staticmethod
    def filter(request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        return endpoints.waiting > 0

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        pass


class Waits(epp.Producer[epp.NoParams]):
    type = "waits"

    async def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        pass


def test_good_classes_pass() -> None:
    assert verify(Good, "good") is Good
    assert verify(Several) is Several
    assert verify(Waits) is Waits


def test_roles() -> None:
    assert roles_of(Good) == {Role.SCORER}
    assert roles_of(Several) == {Role.SCORER, Role.FILTER, Role.HOOKS}
    assert roles_of(Waits) == {Role.PRODUCER}


def made(*bases: type, **members: Any) -> Any:
    """A class with these members; `type` is given."""
    return type("Bad", bases or (Good,), {"type": "bad", **members})


def not_enough(self: Any, request: Any) -> None: ...
def too_many(self: Any, request: Any, endpoints: Any, more: Any) -> None: ...
async def waits(self: Any, request: Any, endpoints: Any) -> None: ...
def plain(self: Any) -> None: ...
def scored(self: Any, request: Any, endpoints: Any) -> None: ...


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: 5, r"5 is no plugin class \(inherit from"),
        (lambda: object, "builtins:object is no plugin class"),
        (lambda: made(type=""), r"has no `type` \(add `type = "),
        (lambda: made(stability="betta"), r"stability 'betta' is none of .* \(did you mean `beta`\?\)"),
        (lambda: made(score=not_enough), r"Bad\.score\(self, request\) cannot take \(request, endpoints\) \(write"),
        (lambda: made(score=too_many), r"Bad\.score\(self, request, endpoints, more\) cannot take"),
        (lambda: made(score=5), r"Bad\.score is not a method"),
        (lambda: made(score=waits), r"Bad\.score is `async def`, but this hook must not wait"),
        (lambda: made(start=plain), r"Bad\.start must be `async def`"),
        (lambda: made(consumes=plain), r"Bad\.consumes is a method, not a property \(put `@property`"),
        (lambda: made(on_pick=plain), r"Bad\.on_pick would never be called.*did you mean `on_picked`"),
        (lambda: made(__init__=plain), r"Bad\.__init__\(self\) cannot take \(params, context\)"),
        (lambda: made(Params=dict), r"Bad\.Params is not an `epp\.Params`"),
        (lambda: made(epp.Scorer), r"Bad does not implement `score` \(add `def score\(self, request"),
        (lambda: made(epp.Scorer, scores=scored), r"does not implement `score` \(rename `scores` to `score`\)"),
        (lambda: made(epp.EndpointScorer), "does not implement `score_endpoint`"),
        (lambda: made(epp.Plugin), "does nothing: it has no role"),
    ],
)  # fmt: skip
def test_what_is_refused(bad: Callable[[], Any], said: str) -> None:
    with pytest.raises(epp.ConfigError, match=said):
        verify(bad())


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(epp.ConfigError, match='registered as `other`, but says `type = "good"`'):
        verify(Good, "other")


def test_parameters_that_cannot_be_read_are_refused() -> None:
    class Bad(Good):
        class Params(epp.Params, frozen=True):
            what: Nowhere = 1  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(epp.ConfigError, match="Params cannot be read"):
        verify(Bad)
