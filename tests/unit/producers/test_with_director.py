"""The producers under the real director: every way in which a request can end leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import pytest

import epp
from epp import testing
from epp.director.director import Director
from epp.director.flight import RequestHead
from epp.director.parsing import ParserTable
from epp.director.request_flight import RequestFlight
from epp.scheduling.profile import SchedulingProfile
from epp.scheduling.scheduler import Scheduler
from epp_plugins.producers.approx_prefix_cache import ApproxPrefixCacheParams, ApproxPrefixCacheProducer
from epp_plugins.producers.inflight_load import InflightLoadParams, InflightLoadProducer
from epp_plugins.producers.token_producer import TokenProducer, TokenProducerParams


class Quiet:
    """Timings and recorder; a plugin that fails fails the test unless it is expected to."""

    itl_bounds = (0.1,)

    def __init__(self) -> None:
        self.failures: list[BaseException] = []

    def duration(self, *names: str) -> Any:
        return self

    def observe(self, value: float) -> None:
        pass

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        self.failures.append(error)

    def unexpected(self, error: BaseException) -> None:
        self.failures.append(error)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class Text(epp.Payload):
    def __init__(self, text: str) -> None:
        super().__init__("completions", model="m", rewritable=True)
        self.text = text

    def parts(self) -> Any:
        yield [epp.TextPart(self.text)]


class TextParser(epp.Parser[epp.NoParams]):
    type = "text"
    paths = ("completions",)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> epp.Payload:
        return Text(body.decode())

    def rewrite_model(self, payload: epp.Payload, body: bytes, model: str) -> bytes:
        raise ValueError("cannot be rewritten")


class MostCached(epp.Picker[epp.NoParams]):
    type = "most-cached"

    def pick(self, request: Any, endpoints: epp.Endpoints, scores: epp.FloatArray) -> Sequence[int]:
        match = epp.prefix_match(request, endpoints, "approx-prefix-cache-producer")
        return [0 if match is None else int(match.blocks.argmax())]


class Single(epp.ProfileHandler[epp.NoParams]):
    type = "single"

    def next_profiles(self, request: Any, profiles: Mapping[str, Any], done: Mapping[str, Any]) -> Sequence[str]:
        return list(profiles)

    def primary(self, request: Any, done: Mapping[str, Any]) -> str:
        return next(iter(done))


class Last(epp.Plugin[epp.NoParams]):
    """Runs after the producers and fails as it is told."""

    type = "last"
    error: Exception | None = None

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        if self.error is not None:
            raise self.error


class Shaker(epp.Producer[epp.NoParams]):
    """Replaces the first endpoint as soon as the request waits for something."""

    type = "shaker"
    active = False

    def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        if self.active:
            asyncio.get_running_loop().call_soon(self._replace)

    def _replace(self) -> None:
        self.context.table.remove("10.0.0.0:8000")
        self.context.table.add(epp.Endpoint("pod-9", "10.0.0.9", 8000))


class World:
    def __init__(self, **prefix: Any) -> None:
        self.table = epp.EndpointTable()
        for number in range(3):
            self.table.add(epp.Endpoint(f"pod-{number}", f"10.0.0.{number}", 8000))
        self.quiet = Quiet()

        def context(name: str) -> epp.PluginContext:
            return testing.context(name, table=self.table)

        self.shaker = Shaker(epp.NoParams(), context("shaker"))
        producers: list[epp.Producer[Any]] = [
            self.shaker,
            TokenProducer(TokenProducerParams(), context("token-producer")),
            ApproxPrefixCacheProducer(ApproxPrefixCacheParams(**prefix), context("approx-prefix-cache-producer")),
            InflightLoadProducer(InflightLoadParams(), context("inflight-load-producer")),
        ]
        self.last = Last(epp.NoParams(), context("last"))
        timings: Any = self.quiet
        profile = SchedulingProfile(
            "default",
            filters=[],
            scorers=[],
            picker=MostCached(epp.NoParams(), context("picker")),
            timings=timings,
            clock=lambda: 0.0,
        )
        handler = Single(epp.NoParams(), context("handler"))
        self.director = Director(
            table=self.table,
            parsers=ParserTable([TextParser(epp.NoParams(), context("parser"))]),
            scheduler=Scheduler({"default": profile}, handler, timings=timings, clock=lambda: 0.0),
            producers=producers,
            admitters=[],
            plugins=[*producers, self.last],
            admission=self.quiet,
            recorder=timings,
            timings=timings,
            clock=lambda: 0.0,
        )

    def decide(self, text: str, **headers: str) -> RequestFlight | Awaitable[RequestFlight]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        head = RequestHead(names, "/v1/completions", "POST", "r", 0.0)
        return self.director.decide(head, text.encode())

    def pick(self, text: str) -> RequestFlight:
        flight = self.decide(text)
        assert isinstance(flight, RequestFlight)
        return flight

    def counts(self) -> tuple[list[float], list[float]]:
        columns = self.table.columns
        return columns["inflight_requests"][:3].tolist(), columns["inflight_tokens"][:3].tolist()


NOTHING = ([0, 0, 0], [0, 0, 0])


@pytest.mark.parametrize("cause", list(epp.TerminationCause))
@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_however_a_request_ends(cause: epp.TerminationCause, chunks: int) -> None:
    world = World()
    flight = world.pick("x" * 400)
    assert world.counts() == ([1, 0, 0], [100, 0, 0])
    for _ in range(chunks):
        flight.chunk(1.0, 10)
        assert world.counts() == ([1, 0, 0], [0, 0, 0])
    flight.end(cause)
    flight.end(cause)
    assert world.counts() == NOTHING
    assert not world.quiet.failures


def test_a_refusal_after_the_pick_gives_everything_back() -> None:
    world = World()
    world.last.error = epp.ServiceUnavailable("no")
    with pytest.raises(epp.ServiceUnavailable):
        world.decide("x" * 400)
    assert world.counts() == NOTHING


def test_a_failure_after_the_pick_gives_everything_back() -> None:
    world = World()
    with pytest.raises(epp.Internal):
        world.decide("x" * 400, x_llm_d_model_name_rewrite="other")
    assert world.counts() == NOTHING


def test_a_crashing_plugin_changes_nothing() -> None:
    world = World()
    world.last.error = RuntimeError("a bug")
    flight = world.pick("x" * 400)
    assert world.counts() == ([1, 0, 0], [100, 0, 0])
    flight.end(epp.TerminationCause.NATURAL)
    assert world.counts() == NOTHING
    assert [str(error) for error in world.quiet.failures] == ["a bug"]


def test_the_second_request_of_a_burst_counts_only_what_is_not_cached() -> None:
    world = World()
    first = world.pick("x" * 64 * 4 * 3)
    second = world.pick("x" * 64 * 4 * 3 + "y" * 100)
    assert world.counts() == ([2, 0, 0], [3 * 64 + 25, 0, 0])
    for flight in (first, second):
        flight.end(epp.TerminationCause.CLIENT_DISCONNECT)
    assert world.counts() == NOTHING


async def test_a_pool_that_changes_while_a_long_prompt_is_hashed() -> None:
    world = World(max_prefix_tokens_to_match=0, max_prefix_blocks_to_match=0)
    text = "x" * 64 * 4 * 6000
    world.shaker.active = True
    waiting = world.decide(text)
    assert not isinstance(waiting, RequestFlight)
    flight = await waiting
    assert world.table.row_of("10.0.0.9:8000") == 0
    assert flight.response.served == "10.0.0.1:8000"
    assert world.counts()[0] == [0, 1, 0]
    flight.end(epp.TerminationCause.ERROR)
    assert world.counts() == NOTHING
    assert not world.quiet.failures
