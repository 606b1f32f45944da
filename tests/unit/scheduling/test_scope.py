"""A plugin reads and writes what it declared; everything else is absent for it, and counted."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

import epp
from epp.api.prefix import PrefixMatch, prefix_match, publish_prefix_match
from epp.scheduling.guard import Guarded

MINE = epp.DataKey("Colour", "mine")
THEIRS = epp.DataKey("Colour", "theirs")
SCRATCH = epp.DataKey("anything", "mine")


class Timings:
    def __init__(self) -> None:
        self.failures: list[str] = []
        self.violations: list[tuple[str, str, str]] = []

    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> Any:
        class Child:
            def observe(self, value: float) -> None:
                """Not of interest here."""

        return Child()

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        self.failures.append(str(error))

    def violated(self, extension_point: str, plugin_type: str, plugin_name: str, access: str, key: epp.DataKey) -> None:
        self.violations.append((plugin_name, access, str(key)))


class Painter(epp.Producer[epp.NoParams]):
    """Does what the test wants, with what the test declares."""

    type = "painter"
    act: Callable[[epp.InferenceRequest, epp.Endpoints], Any]
    made: tuple[epp.DataKey, ...] = ()
    read: tuple[epp.DataKey, ...] = ()
    maybe: tuple[epp.DataKey, ...] = ()

    @property
    def produces(self) -> Sequence[epp.DataKey]:
        return self.made

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return self.read

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        return self.maybe

    def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> Awaitable[None] | None:
        told: Awaitable[None] | None = self.act(request, endpoints)
        return told


class Case:
    def __init__(self) -> None:
        self.table = epp.EndpointTable()
        for i in range(2):
            self.table.add(epp.Endpoint(name=f"p{i}", address=f"10.0.0.{i}", port=8000))
        self.endpoints = self.table.all(0.0)
        self.request = epp.InferenceRequest(
            id="r", headers={}, path="/", body=b"", payload=epp.Payload(), received_at=0.0
        )
        self.timings = Timings()

    def run(self, act: Callable[[epp.InferenceRequest, epp.Endpoints], Any], **declared: Any) -> Any:
        def find(wanted: str) -> epp.Plugin[Any]:
            raise KeyError(wanted)

        context = epp.PluginContext(
            name="mine",
            clock=lambda: 0.0,
            rng=random.Random(1),
            log=logging.getLogger("t"),
            table=self.table,
            find=find,
        )
        painter = Painter(epp.NoParams(), context)
        painter.act = act
        for name, keys in declared.items():
            setattr(painter, name, keys)
        guarded = Guarded(painter, painter.produce, "DataProducer", self.timings, lambda: 0.0)
        return guarded.run(self.request, self.endpoints)


@pytest.fixture
def case() -> Case:
    return Case()


def test_what_is_declared_is_there(case: Case) -> None:
    def act(request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        request.attributes[MINE] = "red"
        endpoints.set(MINE, np.array([1.0, 2.0]))
        assert request.attributes[MINE] == "red"
        assert endpoints.column(MINE).tolist() == [1.0, 2.0]
        assert request.attributes.get(THEIRS) == "blue"
        assert THEIRS in request.attributes
        assert endpoints.has(THEIRS)
        assert endpoints.take([1]).column(THEIRS).tolist() == [4.0]
        assert endpoints.column("waiting").shape == (2,)
        assert endpoints.has("waiting")
        endpoints.set("mood", np.zeros(2))
        assert len(request.attributes) == 2
        assert set(request.attributes) == {MINE, THEIRS}

    case.request.attributes[THEIRS] = "blue"
    case.endpoints.set(THEIRS, np.array([3.0, 4.0]))
    before = case.request.attributes
    case.run(act, made=(MINE,), read=(THEIRS,))
    assert not case.timings.failures
    assert not case.timings.violations
    assert case.request.attributes is before
    assert case.endpoints.column(MINE).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("keys", [{"maybe": (THEIRS,)}, {"read": (epp.DataKey("Colour", epp.ANY_PRODUCER),)}])
def test_optional_keys_and_any_producer_count_as_declared(case: Case, keys: Any) -> None:
    case.request.attributes[THEIRS] = "blue"
    seen: list[Any] = []
    case.run(lambda request, _: seen.append(request.attributes.get(THEIRS)), **keys)
    assert seen == ["blue"]
    assert not case.timings.violations


def test_its_own_scratch_needs_no_declaration(case: Case) -> None:
    def act(request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        request.attributes[SCRATCH] = 1
        assert request.attributes.pop(SCRATCH) == 1
        endpoints.set(SCRATCH, np.zeros(2))
        assert endpoints.has(SCRATCH)

    case.run(act)
    assert not case.timings.failures
    assert not case.timings.violations


def test_undeclared_reads_find_nothing(case: Case) -> None:
    seen: list[Any] = []

    def act(request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        seen.append(request.attributes.get(THEIRS))
        seen.append(THEIRS in request.attributes)
        seen.append(list(request.attributes))
        seen.append(endpoints.has(THEIRS))
        seen.append(endpoints.take([0]).has(THEIRS))
        endpoints.column(THEIRS)

    case.request.attributes[THEIRS] = "blue"
    case.endpoints.set(THEIRS, np.array([3.0, 4.0]))
    case.run(act)
    assert seen == [None, False, [], False, False]
    assert case.timings.violations == [("mine", "read", "Colour/theirs")] * 5
    assert ["declare it in `consumes`" in failure for failure in case.timings.failures] == [True]


@pytest.mark.parametrize(
    "act",
    [
        lambda request, _: request.attributes.__setitem__(THEIRS, "green"),
        lambda request, _: request.attributes.pop(THEIRS),
        lambda request, _: request.attributes.__delitem__(THEIRS),
        lambda _, endpoints: endpoints.set(THEIRS, np.ones(2)),
    ],
)
def test_undeclared_writes_fail_the_hook_and_change_nothing(case: Case, act: Any) -> None:
    case.request.attributes[THEIRS] = "blue"
    case.run(act, read=(THEIRS,))
    assert case.timings.violations == [("mine", "write", "Colour/theirs")]
    assert ["`produces` does not name" in failure for failure in case.timings.failures] == [True]
    assert case.request.attributes == {THEIRS: "blue"}
    assert not case.endpoints.has(THEIRS)


def test_a_prompt_of_somebody_who_makes_none_is_taken_back(case: Case) -> None:
    def act(request: epp.InferenceRequest, _: epp.Endpoints) -> None:
        request.prompt = epp.Prompt((b"abcd",), estimated=True)

    case.run(act)
    assert case.request.prompt is None
    assert case.timings.violations == [("mine", "write", "TokenizedPrompt/mine")]
    case.run(act, made=(epp.DataKey(epp.TOKENIZED_PROMPT, "mine"),))
    assert case.request.prompt is not None
    assert len(case.timings.violations) == 1


def test_a_prefix_match_is_one_key(case: Case) -> None:
    match = PrefixMatch(np.ones(2), np.ones(2), 2, 16)
    key = epp.DataKey(epp.PREFIX_CACHE_MATCH, "mine")
    case.run(lambda request, endpoints: publish_prefix_match(request, endpoints, "mine", match), made=(key,))
    seen: list[Any] = []
    theirs = epp.DataKey(epp.PREFIX_CACHE_MATCH, "theirs")
    publish_prefix_match(case.request, case.endpoints, "theirs", match)
    look = lambda request, endpoints: seen.append(prefix_match(request, endpoints, "theirs"))  # noqa: E731
    case.run(look, read=(theirs,))
    case.run(look)
    assert not case.timings.failures
    assert seen[0] is not None
    assert seen[1] is None
    assert case.timings.violations == [("mine", "read", str(theirs))]


async def test_a_producer_that_waits_stays_in_its_scope(case: Case) -> None:
    async def later(request: epp.InferenceRequest) -> None:
        request.attributes[MINE] = "red"
        request.attributes[THEIRS] = "green"

    before = case.request.attributes
    waiting = case.run(lambda request, _: later(request), made=(MINE,))
    assert case.request.attributes is before
    with pytest.raises(Exception, match="`produces` does not name"):
        await waiting
    assert case.request.attributes is before
    assert before == {MINE: "red"}
    assert case.timings.violations == [("mine", "write", "Colour/theirs")]


async def test_a_prompt_that_comes_later_is_taken_back_too(case: Case) -> None:
    async def later(request: epp.InferenceRequest) -> None:
        request.prompt = epp.Prompt((b"abcd",), estimated=True)

    with pytest.raises(Exception, match=r"request\.prompt"):
        await case.run(lambda request, _: later(request))
    assert case.request.prompt is None
