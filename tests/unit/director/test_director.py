"""The steps of a request: their order, what refuses it, what waits, and that a picked request always lands."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import epp
from epp.director.admission import SheddableAdmission
from epp.director.candidates import candidates
from epp.director.director import Director, DirectorSettings
from epp.director.flight import RequestHead
from epp.director.naming import wants_cached_only
from epp.director.parsing import ParserTable
from epp.director.request_flight import RequestFlight
from epp.scheduling.profile import SchedulingProfile
from epp.scheduling.scheduler import Scheduler
from epp.telemetry.tracing import OpenTelemetryTracer, Tracer

NOTHING = epp.NoParams()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Timings:
    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        self.observed: list[tuple[str, str]] = []

    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> Any:
        observed = self.observed

        class Child:
            def observe(self, value: float) -> None:
                assert value >= 0
                observed.append((extension_point, plugin_name))

        return Child()

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        self.failures.append((extension_point, plugin_name))

    def violated(self, extension_point: str, plugin_type: str, plugin_name: str, access: str, key: epp.DataKey) -> None:
        self.failures.append((f"{extension_point} {access} {key}", plugin_name))


class Journal:
    """A recorder that keeps everything."""

    itl_bounds = (0.01, 0.1)

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def refused(self, request: epp.InferenceRequest | None, error: epp.RequestError) -> None:
        self.events.append(("refused", error.code))

    def unexpected(self, error: BaseException) -> None:
        self.events.append(("unexpected", type(error).__name__))

    def scheduled(self, request: epp.InferenceRequest, endpoint: epp.Endpoint, seconds: float) -> None:
        self.events.append(("scheduled", endpoint.name))

    def scheduling_failed(self, request: epp.InferenceRequest, seconds: float) -> None:
        self.events.append(("scheduling_failed",))

    def began(self, request: epp.InferenceRequest, now: float) -> None:
        self.events.append(("began", request.id))

    def ended(self, request: Any, response: epp.InferenceResponse, itl_counts: Any, now: float) -> None:
        self.events.append(("ended", str(response.cause), itl_counts))

    def processed(self, seconds: float) -> None:
        self.events.append(("processed", seconds))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] == name]


class Json(epp.Parser[epp.NoParams]):
    type = "json"
    paths = ("completions",)
    error: type[BaseException] = ZeroDivisionError

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> epp.Payload:
        if body == b"bad":
            raise epp.BadRequest("bad body")
        if body == b"crash":
            raise self.error
        return epp.Payload("completions", model=body.decode() or None, rewritable=True)

    def usage(self, payload: epp.Payload, body: bytes) -> epp.Usage | None:
        if body == b"crash":
            raise self.error
        return epp.Usage(prompt_tokens=int(body))

    def stream_usage(self, payload: epp.Payload, event: bytes) -> epp.Usage | None:
        if event == b"crash":
            raise self.error
        return epp.Usage(completion_tokens=int(event))

    def rewrite_model(self, payload: epp.Payload, body: bytes, model: str) -> bytes:
        if model == "unspeakable":
            raise ValueError(model)
        if model == "crash":
            raise self.error
        return model.encode()


class Spy(epp.Producer[epp.NoParams]):
    """Overrides every hook and writes down when it ran."""

    type = "spy"

    def __init__(self, context: epp.PluginContext) -> None:
        super().__init__(NOTHING, context)
        self.calls: list[str] = []
        self.wait: float | None = None
        self.before: Any = None
        self.gate: asyncio.Future[None] | None = None
        self.fail: set[str] = set()
        self.error: type[BaseException] = RuntimeError

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fail:
            raise self.error(call)

    def produce(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> Awaitable[None] | None:
        self._note("produce")
        return self._later() if self.wait is not None else None

    async def _later(self) -> None:
        assert self.wait is not None
        await asyncio.sleep(self.wait)
        if self.gate is not None:
            await self.gate
        if self.before is not None:
            self.before()
        if "later" in self.fail:
            raise self.error

    def on_request(self, request: epp.InferenceRequest) -> None:
        self._note("on_request")

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        self._note("on_picked")
        result.headers["x-spy"] = "was here"

    def on_response_headers(self, request: epp.InferenceRequest, response: epp.InferenceResponse) -> None:
        self._note("on_response_headers")

    def on_first_chunk(self, request: epp.InferenceRequest, response: epp.InferenceResponse) -> None:
        self._note("on_first_chunk")

    def on_response_end(self, request: epp.InferenceRequest, response: epp.InferenceResponse) -> None:
        self._note("on_response_end")


class Refuses(epp.Admitter[epp.NoParams]):
    type = "refuses"

    def admit(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        if request.headers.get("x-refuse"):
            raise epp.ServiceUnavailable("not today")


class Last(epp.Picker[epp.NoParams]):
    type = "last"

    def pick(self, request: Any, endpoints: epp.Endpoints, scores: epp.FloatArray) -> Sequence[int]:
        return [len(endpoints) - 1]


class One(epp.ProfileHandler[epp.NoParams]):
    type = "one"

    def next_profiles(self, request: Any, profiles: Any, done: Any) -> Sequence[str]:
        return ["default"]

    def primary(self, request: Any, done: Any) -> str:
        return "default"


class Full(epp.SaturationDetector[epp.NoParams]):
    type = "full"

    error: BaseException | None = None

    def saturation(self, endpoints: epp.Endpoints) -> float:
        if self.error is not None:
            raise self.error
        return 1.0


class Negative:
    def priority(self, name: str) -> int:
        return {"batch": -1}.get(name, 0)


class Bench:
    """A director with everything around it."""

    def __init__(self, *, settings: DirectorSettings | None = None, tracer: Tracer | None = None) -> None:
        self.clock = Clock()
        self.table = epp.EndpointTable()
        for i in range(3):
            self.table.add(epp.Endpoint(name=f"p{i}", address=f"10.0.0.{i}", port=8000))
        self.timings = Timings()
        self.journal = Journal()
        self.spy = Spy(self.context("spy"))
        self.full = Full(NOTHING, self.context("full"))
        self.decisions: list[str] = []
        profile = SchedulingProfile(
            "default",
            filters=[],
            scorers=[],
            picker=Last(NOTHING, self.context("last")),
            timings=self.timings,
            clock=self.clock,
        )
        handler = One(NOTHING, self.context("one"))
        self.parser = Json(NOTHING, self.context("json"))
        self.director = Director(
            table=self.table,
            parsers=ParserTable([self.parser]),
            scheduler=Scheduler({"default": profile}, handler, timings=self.timings, clock=self.clock),
            producers=[self.spy],
            admitters=[Refuses(NOTHING, self.context("refuses"))],
            plugins=[self.spy],
            admission=SheddableAdmission(self.full, self.timings),
            recorder=self.journal,
            timings=self.timings,
            clock=self.clock,
            settings=settings or DirectorSettings(),
            objectives=Negative(),
            tracer=tracer,
            observers=[lambda request, result: self.decisions.append(result.target.picked[0].name)],
        )

    def context(self, name: str) -> epp.PluginContext:
        def find(wanted: str) -> epp.Plugin[Any]:
            raise KeyError(wanted)

        return epp.PluginContext(
            name=name, clock=self.clock, rng=random.Random(1), log=logging.getLogger("t"), table=self.table, find=find
        )

    def head(self, subset: tuple[str, ...] | None = None, **headers: str) -> RequestHead:
        return RequestHead(
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            path="/v1/completions",
            method="POST",
            request_id="r1",
            received_at=self.clock(),
            subset=subset,
        )

    def decide(self, body: bytes = b"m", subset: tuple[str, ...] | None = None, **headers: str) -> RequestFlight:
        flight = self.director.decide(self.head(subset, **headers), body)
        assert isinstance(flight, RequestFlight)
        return flight


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_is_decided_in_place_and_lives_until_its_end(bench: Bench) -> None:
    flight = bench.decide()
    assert flight.decision.destination == "10.0.0.2:8000"
    assert flight.decision.set_headers == {"x-spy": "was here"}
    assert flight.decision.body is None
    assert bench.decisions == ["p2"]
    assert bench.table.columns["picked_at"][bench.table.row_of("10.0.0.2:8000")] == 100.0
    assert bench.spy.calls == ["on_request", "produce", "on_picked"]
    flight.response_headers(200, {"content-type": "text/event-stream"}, "10.0.0.9:1")
    for now in (101.0, 101.005, 101.055, 102.0):
        flight.chunk(now, 10)
    flight.stream_usage(b"7")
    flight.body_usage(b"9")
    flight.end(epp.TerminationCause.NATURAL)
    flight.end(epp.TerminationCause.ERROR)
    assert bench.spy.calls[3:] == ["on_response_headers", "on_first_chunk", "on_response_end"]
    assert bench.journal.named("ended") == [("ended", "natural", [1, 1, 1])]
    assert len(bench.journal.named("processed")) == 1
    response = flight.response
    assert (response.served, response.body_size, response.first_chunk_at) == ("10.0.0.9:1", 40, 101.0)
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (9, 7)


def test_reading_the_body_is_timed_like_every_other_plugin(bench: Bench) -> None:
    bench.decide()
    with pytest.raises(epp.BadRequest):
        bench.decide(b"crash")
    assert bench.timings.observed.count(("RequestParsing", "json")) == 2


def test_reading_the_answer_is_timed_too(bench: Bench) -> None:
    flight = bench.decide()
    flight.stream_usage(b"7")
    flight.body_usage(b"crash")
    assert bench.timings.observed.count(("ResponseParsing", "json")) == 2


def test_served_falls_back_to_the_picked_endpoint(bench: Bench) -> None:
    flight = bench.decide()
    flight.response_headers(200, {}, "")
    assert flight.response.served == "10.0.0.2:8000"
    assert not flight.response.streaming


@pytest.mark.parametrize(
    ("body", "headers", "error", "text"),
    [
        (b"bad", {}, epp.BadRequest, "bad body"),
        (b"crash", {}, epp.BadRequest, "json could not read the body"),
        (b"", {}, epp.BadRequest, "model not found in request body"),
        (b"m", {"x_refuse": "1"}, epp.ServiceUnavailable, "not today"),
        (b"m", {"x_llm_d_inference_objective": "batch"}, epp.ResourceExhausted, "sheddable request dropped"),
        (b"m", {"prefer": "wait=1, If-Available"}, epp.PreconditionFailed, "KV cache"),
    ],
)
def test_refusals_are_counted_once(bench: Bench, body: bytes, headers: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        bench.decide(body, **headers)
    assert bench.journal.named("refused") == [("refused", error.code)]
    assert not bench.journal.named("began")


def test_unknown_path_is_refused_and_counted(bench: Bench) -> None:
    head = bench.head()
    head.path = "/nothing"
    with pytest.raises(epp.BadRequest, match="no parser registered"):
        bench.director.decide(head, b"m")
    assert bench.journal.named("refused") == [("refused", "BadRequest")]


def test_refusals_of_the_exchange_are_counted(bench: Bench) -> None:
    bench.director.refused(None, epp.PayloadTooLarge("huge"))
    assert bench.journal.named("refused") == [("refused", "PayloadTooLarge")]


def test_model_rewrite_by_header_changes_body_and_is_restored(bench: Bench) -> None:
    flight = bench.decide(b"m", x_llm_d_model_name_rewrite="other")
    assert flight.decision.body == b"other"
    assert flight.decision.restore_model == ("other", "m")
    assert flight.request.target_model == "other"


def test_fairness_id_and_objective_come_from_headers(bench: Bench) -> None:
    request = bench.decide(b"m", x_gateway_inference_fairness_id="team", x_gateway_inference_objective="gold").request
    assert (request.fairness_id, request.objective, request.priority) == ("team", "gold", 0)


def test_what_was_taken_is_given_back_when_the_rewrite_fails(bench: Bench) -> None:
    with pytest.raises(epp.Internal, match="ValueError"):
        bench.decide(b"m", x_llm_d_model_name_rewrite="unspeakable")
    assert bench.spy.calls[-2:] == ["on_picked", "on_response_end"]
    assert bench.journal.named("ended") == [("ended", "error", None)]
    assert bench.journal.named("refused") == [("refused", "Internal")]


def test_subset_hint(bench: Bench) -> None:
    assert bench.decide(subset=("10.0.0.1:8000", "10.9.9.9:1")).decision.destination == "10.0.0.1:8000"
    assert bench.decide(subset=("10.0.0.0",)).decision.destination == "10.0.0.0:8000"
    for subset in ((), ("10.0.0.0:9",)):
        with pytest.raises(epp.ServiceUnavailable) as refusal:
            bench.decide(subset=subset)
        assert refusal.value.reason == "rejected-no-endpoints"
    deaf = Bench(settings=DirectorSettings(use_subset_hint=False))
    assert deaf.decide(subset=()).decision.destination == "10.0.0.2:8000"


def test_subset_names_an_ipv6_endpoint_with_or_without_brackets() -> None:
    table = epp.EndpointTable()
    table.add(epp.Endpoint(name="six", address="fd00::1", port=80))
    for hint in ("[fd00::1]:80", "fd00::1", "[fd00::1]"):
        assert len(candidates(table.all(0.0), (hint,))) == 1


def test_empty_pool_is_503(bench: Bench) -> None:
    for i in range(3):
        bench.table.remove(f"10.0.0.{i}:8000")
    with pytest.raises(epp.ServiceUnavailable, match="the pool is empty"):
        bench.decide()


def test_a_request_without_body_is_scheduled_too(bench: Bench) -> None:
    head = bench.head()
    head.method = "GET"
    flight = bench.director.decide_without_body(head)
    assert isinstance(flight, RequestFlight)
    assert flight.decision.destination == "10.0.0.2:8000"
    flight.stream_usage(b"7")
    flight.body_usage(b"7")
    assert flight.response.usage == epp.Usage()


def test_scores_are_told_when_asked_for() -> None:
    bench = Bench(settings=DirectorSettings(emit_scores=True))
    assert bench.decide().decision.scores == {f"10.0.0.{i}:8000": 0.0 for i in range(3)}


def test_failing_hooks_are_counted_and_change_nothing(bench: Bench) -> None:
    bench.spy.fail = {"on_request", "produce", "on_picked", "on_response_headers", "on_first_chunk", "on_response_end"}
    flight = bench.decide()
    flight.response_headers(200, {}, "")
    flight.chunk(1.0, 1)
    flight.stream_usage(b"crash")
    flight.body_usage(b"crash")
    flight.end(epp.TerminationCause.NATURAL)
    assert [point for point, _ in bench.timings.failures] == [
        "RequestHeader",
        "DataProducer",
        "PreRequest",
        "ResponseReceived",
        "ResponseStreaming",
        "ResponseComplete",
    ]
    assert len(bench.journal.named("unexpected")) == 2
    assert len(bench.journal.named("ended")) == 1


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, GeneratorExit])
def test_what_is_no_exception_stays_in_the_hook_too(bench: Bench, error: type[BaseException]) -> None:
    """A library that calls `sys.exit` in a hook costs this one request its hook, and nobody else anything."""
    bench.spy.error = bench.parser.error = error
    bench.spy.fail = {"on_request", "produce", "on_picked", "on_response_headers", "on_first_chunk", "on_response_end"}
    flight = bench.decide()
    flight.response_headers(200, {}, "")
    flight.chunk(1.0, 1)
    flight.stream_usage(b"crash")
    flight.body_usage(b"crash")
    flight.end(epp.TerminationCause.NATURAL)
    assert len(bench.timings.failures) == 6
    assert len(bench.journal.named("unexpected")) == 2
    with pytest.raises(epp.BadRequest, match="json could not read the body"):
        bench.decide(b"crash")


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError])
def test_a_rewrite_that_would_end_the_picker_is_an_internal_error(bench: Bench, error: type[BaseException]) -> None:
    bench.parser.error = error
    with pytest.raises(epp.Internal, match=error.__name__):
        bench.decide(b"m", x_llm_d_model_name_rewrite="crash")
    assert bench.spy.calls[-1] == "on_response_end"


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, RuntimeError])
async def test_a_waiting_producer_that_would_end_the_picker_is_left_out(
    bench: Bench, error: type[BaseException]
) -> None:
    bench.spy.wait, bench.spy.fail, bench.spy.error = 0.0, {"later"}, error
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    flight = await asyncio.ensure_future(pending)
    assert flight.decision.destination == "10.0.0.2:8000"
    assert bench.timings.failures == [("DataProducer", "spy")]


def test_the_operator_may_interrupt_a_hook(bench: Bench) -> None:
    bench.spy.fail, bench.spy.error = {"on_request"}, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        bench.decide()


@pytest.mark.parametrize("error", [RuntimeError("?"), SystemExit(1)])
def test_a_saturation_detector_that_fails_has_no_say(bench: Bench, error: BaseException) -> None:
    bench.full.error = error
    assert bench.decide(x_llm_d_inference_objective="batch").decision.destination
    assert bench.timings.failures == [("Admission", "full")]


async def test_a_producer_that_waits_makes_only_that_request_wait(bench: Bench) -> None:
    bench.spy.wait = 0.001
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    assert (await pending).decision.destination == "10.0.0.2:8000"


async def test_a_producer_that_takes_too_long_is_left_out(bench: Bench) -> None:
    bench.spy.wait = 30.0
    bench.spy.timeout = 0.01
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    assert (await pending).decision.destination == "10.0.0.2:8000"
    assert bench.timings.failures == [("DataProducer", "spy")]


@pytest.mark.parametrize("turns", range(4))
async def test_a_client_that_goes_as_the_data_come_gets_no_endpoint(bench: Bench, turns: int) -> None:
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    bench.spy.wait, bench.spy.gate = 0.0, gate
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    task = asyncio.ensure_future(pending)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    gate.set_result(None)
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.done():  # the data came first, and there was a decision
        assert bench.decisions == ["p2"]
        return
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.decisions == []
    assert "on_picked" not in bench.spy.calls


async def test_an_endpoint_that_goes_away_meanwhile_is_not_picked(bench: Bench) -> None:
    def replace() -> None:
        bench.table.remove("10.0.0.2:8000")
        bench.table.add(epp.Endpoint(name="new", address="10.0.0.7", port=8000))

    bench.spy.wait = 0.001
    bench.spy.before = replace
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    assert (await pending).decision.destination == "10.0.0.1:8000"


async def test_all_endpoints_gone_meanwhile_is_503(bench: Bench) -> None:
    bench.spy.wait = 0.001
    bench.spy.before = lambda: [bench.table.remove(f"10.0.0.{i}:8000") for i in range(3)]
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    with pytest.raises(epp.ServiceUnavailable, match="went away"):
        await pending
    assert bench.journal.named("refused") == [("refused", "ServiceUnavailable")]


async def test_a_long_body_gives_way_between_steps(bench: Bench) -> None:
    pending = bench.director.decide(bench.head(), b"m" * 70_000)
    assert not isinstance(pending, RequestFlight)
    assert (await pending).decision.destination == "10.0.0.2:8000"


async def test_a_cancelled_decision_takes_nothing(bench: Bench) -> None:
    bench.spy.wait = 30.0
    pending = bench.director.decide(bench.head(), b"m")
    assert not isinstance(pending, RequestFlight)
    task = asyncio.ensure_future(pending)
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bench.journal.named("began")


def test_prefer_if_available_passes_with_a_cached_block(bench: Bench) -> None:
    def produce(request: epp.InferenceRequest, endpoints: epp.Endpoints) -> None:
        blocks = np.array([0.0, 0.0, 1.0])
        epp.publish_prefix_match(request, endpoints, "spy", epp.PrefixMatch(blocks, blocks, 4, 64))

    bench.director._producers[0][1]._hook = produce
    assert bench.decide(b"m", prefer="if-available").decision.destination == "10.0.0.2:8000"


def test_prefer_token_list() -> None:
    assert wants_cached_only({"prefer": "respond-async, if-available"})
    assert not wants_cached_only({"prefer": "if-availably"})
    assert not wants_cached_only({})


@pytest.fixture
def traced(tracer: OpenTelemetryTracer) -> Bench:
    return Bench(tracer=tracer)


def test_the_request_span_lasts_until_the_flight_ends(traced: Bench, exported: InMemorySpanExporter) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    flight = traced.decide(b"m", traceparent=parent)
    assert flight.decision.set_headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert flight.decision.set_headers["x-spy"] == "was here"
    assert "gateway.request" not in {span.name for span in exported.get_finished_spans()}
    flight.end(epp.TerminationCause.NATURAL)
    names = [span.name for span in exported.get_finished_spans()]
    assert {"gateway.request", "gateway.request_orchestration", "run_scheduler_profile"} <= set(names)


def test_the_span_of_a_refused_request_fails_and_ends(traced: Bench, exported: InMemorySpanExporter) -> None:
    with pytest.raises(epp.ServiceUnavailable):
        traced.decide(b"m", x_refuse="1")
    spans = {span.name: span for span in exported.get_finished_spans()}
    assert not spans["gateway.request"].status.is_ok
