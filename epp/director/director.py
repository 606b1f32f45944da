"""The steps of one request, in the order that users of llm-d-router know.

1 parse · 2 model rewrite · 3 objective and priority · 4 `on_request` hooks · 5 admission · 6 candidates · 7 producers
· 8 admitters · 9 scheduling · 10 `prefer: if-available` · 11 in-flight begins: `on_picked` hooks · 12 body rewrite.

The steps are one generator. Driven to its end in place it costs no task switch; when a step has to wait it yields an
awaitable, and that request alone continues in a coroutine. Long bodies yield between the expensive steps, so that the
other streams get their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epp.api.endpoints import Endpoints, EndpointTable
from epp.api.errors import BadRequest, Internal, PreconditionFailed, RequestError, ServiceUnavailable
from epp.api.keys import PREFIX_CACHE_MATCH
from epp.api.plugin import Admitter, Clock, Parser, Plugin, Producer, ProfileResult, SchedulingResult
from epp.api.prefix import prefix_match
from epp.api.request import InferenceRequest, Payload
from epp.director.admission import Admission
from epp.director.candidates import candidates
from epp.director.flight import Decision, RequestHead
from epp.director.naming import (
    FAIRNESS_ID,
    MODEL_REWRITE,
    NAMING_HEADERS,
    OBJECTIVE,
    NoObjectives,
    NoRewrites,
    Objectives,
    Rewrites,
    header,
    wants_cached_only,
)
from epp.director.parsing import ParserTable, request_path
from epp.director.recording import Recorder
from epp.director.request_flight import RequestFlight, ResponseHooks
from epp.scheduling.guard import Guarded, PluginTimings, overriding
from epp.scheduling.scheduler import Scheduler
from epp.telemetry.tracing import ORCHESTRATION, NullTracer, Tracer

Steps = Generator[Awaitable[Any] | None, Any, RequestFlight]
_HOST_PORT = attrgetter("host_port")
DecisionObserver = Callable[[InferenceRequest, SchedulingResult], None]


@dataclass(frozen=True, slots=True)
class DirectorSettings:
    """`emit_scores`: tell the gateway every candidate's score. `use_subset_hint`: obey the gateway's subset.

    `long_body`: bytes from which a request gives way to others between its steps. Parsing and hashing 64 KiB takes
    about half a millisecond, well below the 2 ms that one stream may hold up the others.
    """

    emit_scores: bool = False
    use_subset_hint: bool = True
    long_body: int = 64 * 1024


class Director:
    """Turns a request into a `RequestFlight`, or raises a `RequestError`. One per pool; no state of its own."""

    def __init__(
        self,
        *,
        table: EndpointTable,
        parsers: ParserTable,
        scheduler: Scheduler,
        producers: Sequence[Producer[Any]],
        admitters: Sequence[Admitter[Any]],
        plugins: Sequence[Plugin[Any]],
        admission: Admission,
        recorder: Recorder,
        timings: PluginTimings,
        clock: Clock,
        settings: DirectorSettings = DirectorSettings(),
        objectives: Objectives | None = None,
        rewrites: Rewrites | None = None,
        observers: Sequence[DecisionObserver] = (),
        tracer: Tracer | None = None,
    ) -> None:
        self.table = table
        self.parsers = parsers
        self._scheduler = scheduler
        self.admission = admission
        self._recorder = recorder
        self._clock = clock
        self._settings = settings
        self._objectives = objectives or NoObjectives()
        self._rewrites = rewrites or NoRewrites()
        self._observers = observers
        self._tracer = tracer or NullTracer()

        def observers_of(extension_point: str) -> dict[Parser[Any], Callable[[float], None]]:
            return {p: timings.duration(extension_point, p.type, p.name).observe for p in parsers.parsers}

        self._parsing = observers_of("RequestParsing")
        everyone = list(plugins)

        def guarded(hook: str, extension_point: str) -> list[Guarded]:
            return [
                Guarded(plugin, getattr(plugin, hook), extension_point, timings, clock)
                for plugin in overriding(everyone, hook)
            ]

        self._producers = [(p, Guarded(p, p.produce, "DataProducer", timings, clock)) for p in producers]
        self._admitters = [Guarded(a, a.admit, "Admission", timings, clock) for a in admitters]
        self._on_request = guarded("on_request", "RequestHeader")
        self._on_picked = guarded("on_picked", "PreRequest")
        self._response_hooks = ResponseHooks(
            headers=guarded("on_response_headers", "ResponseReceived"),
            first_chunk=guarded("on_first_chunk", "ResponseStreaming"),
            end=guarded("on_response_end", "ResponseComplete"),
            parsing=observers_of("ResponseParsing"),
        )

    def decide(self, head: RequestHead, body: bytes) -> RequestFlight | Awaitable[RequestFlight]:
        """Pick an endpoint for a request with a body. Raises a `RequestError`, now or when awaited."""
        return self._drive(self._decision_steps(*self._understood(head, body)))

    def decide_without_body(self, head: RequestHead) -> RequestFlight | Awaitable[RequestFlight]:
        """Pick an endpoint for a request that has no body (GET): the same profiles, with nothing known of a prompt."""
        request = InferenceRequest(
            id=head.request_id,
            headers=head.headers,
            path=head.path,
            method=head.method,
            body=b"",
            payload=Payload("no-body"),
            received_at=head.received_at,
            subset=head.subset if self._settings.use_subset_hint else None,
        )
        return self._drive(self._decision_steps(request, None))

    def refused(self, head: RequestHead | None, error: RequestError) -> None:
        """Count a refusal that happened before the director saw the request."""
        self._recorder.refused(None, error)

    def _drive(self, steps: Steps) -> RequestFlight | Awaitable[RequestFlight]:
        try:
            waiting = steps.send(None)
        except StopIteration as done:
            flight: RequestFlight = done.value
            return flight
        return self._continue(steps, waiting)

    async def _continue(self, steps: Steps, waiting: Awaitable[Any] | None) -> RequestFlight:
        try:
            while True:
                try:
                    await (waiting if waiting is not None else asyncio.sleep(0))
                except asyncio.CancelledError as error:
                    if _cancelled():
                        raise
                    waiting = steps.throw(error)
                except (KeyboardInterrupt, GeneratorExit):
                    raise
                except BaseException as error:
                    waiting = steps.throw(error)
                else:
                    waiting = steps.send(None)
        except StopIteration as done:
            flight: RequestFlight = done.value
            return flight
        finally:
            steps.close()

    def _understood(self, head: RequestHead, body: bytes) -> tuple[InferenceRequest, Parser[Any]]:
        try:
            path = request_path(head.path, head.headers, body)
            parser = self.parsers.resolve(path, head.headers, body)
            payload = self._parse(parser, path, head.headers, body)
        except RequestError as error:
            self._recorder.refused(None, error)
            raise
        request = InferenceRequest(
            id=head.request_id,
            headers=head.headers,
            path=path,
            method=head.method,
            body=body,
            payload=payload,
            received_at=head.received_at,
            model=payload.model or "",
            body_size=len(body),
            subset=head.subset if self._settings.use_subset_hint else None,
        )
        return request, parser

    def _parse(self, parser: Parser[Any], path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        began = self._clock()
        try:
            return parser.parse(path, headers, body)
        except (RequestError, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._recorder.unexpected(error)
            raise BadRequest(f"{parser.type} could not read the body: {error}") from error
        finally:
            self._parsing[parser](self._clock() - began)

    def _decision_steps(self, request: InferenceRequest, parser: Parser[Any] | None) -> Steps:
        steps = self._after_parsing(request, parser)
        return self._traced(request, steps) if self._tracer.enabled else steps

    def _traced(self, request: InferenceRequest, steps: Steps) -> Steps:
        """`gateway.request` lasts from here to the end of the flight; its context travels on to the model server."""
        span = self._tracer.request(request.headers)
        orchestration = request.span = span.child(ORCHESTRATION)
        try:
            flight = yield from steps
        except BaseException as error:
            span.fail(error)
            orchestration.end()
            span.end()
            raise
        orchestration.end()
        flight.trace(span)
        return flight

    def _after_parsing(self, request: InferenceRequest, parser: Parser[Any] | None) -> Steps:
        """Counts every way in which a request is not picked, and lets nothing but a `RequestError` out."""
        try:
            long = request.body_size > self._settings.long_body
            if long:
                yield None
            self._name(request)
            for guarded in self._on_request:
                guarded.run_alone(request)

            everybody = self.table.all(self._clock())
            admitted = self.admission.admit(request, everybody)
            if admitted is not None:
                yield admitted
                everybody = self.table.all(self._clock())
            endpoints = candidates(everybody, request.subset)

            generations: NDArray[np.int64] | None = None  # as they were when this request first gave way to others
            for producer, guarded in self._producers:
                producing = guarded.run(request, endpoints)
                if generations is None and (long or producing is not None):
                    generations = self.table.generation[endpoints.rows]
                if producing is not None:
                    try:
                        yield _within(producer.timeout, producing)
                    except (RequestError, KeyboardInterrupt, GeneratorExit):
                        raise
                    except BaseException as error:
                        guarded.failed(error)
                if long:
                    yield None
            if generations is not None:
                endpoints = self._still_there(endpoints, generations)
            for guarded in self._admitters:
                guarded.run(request, endpoints)

            result = self._schedule(request, endpoints, self._clock())
            return self._take_off(request, parser, result)
        except RequestError as error:
            self._recorder.refused(request, error)
            raise
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            self._recorder.unexpected(error)
            refusal = Internal(f"the picker failed: {type(error).__name__}: {error}")
            self._recorder.refused(request, refusal)
            raise refusal from error

    def _name(self, request: InferenceRequest) -> None:
        """Model, objective, priority, fairness id."""
        headers = request.headers
        named = not NAMING_HEADERS.isdisjoint(headers)  # one look for all of them: few requests have any
        request.target_model = request.model
        if request.payload.rewritable:
            target = self._rewrites.target(request.model)
            if not target:
                target = (header(headers, MODEL_REWRITE) if named else "") or request.model
            if not target:
                raise BadRequest("model not found in request body")
            request.target_model = target
        if not named:
            return
        request.objective = header(headers, OBJECTIVE)
        if request.objective:
            request.priority = self._objectives.priority(request.objective)
        fairness_id = header(headers, FAIRNESS_ID)
        if fairness_id:
            request.fairness_id = fairness_id

    def _still_there(self, endpoints: Endpoints, generations: NDArray[np.int64]) -> Endpoints:
        """Others were served while this request was prepared: leave out endpoints that went away in the meantime."""
        there = self.table.generation[endpoints.rows] == generations
        if there.all():
            return endpoints
        if not there.any():
            raise ServiceUnavailable(
                "no endpoints available: all candidates went away while the request was prepared",
                reason="rejected-no-endpoints",
            )
        return endpoints.take(there)

    def _schedule(self, request: InferenceRequest, endpoints: Endpoints, began: float) -> SchedulingResult:
        try:
            result = self._scheduler.schedule(request, endpoints)
        except RequestError:
            self._recorder.scheduling_failed(request, self._clock() - began)
            raise
        target = result.target
        self._recorder.scheduled(request, target.picked[0], self._clock() - began)
        if (
            "prefer" in request.headers
            and wants_cached_only(request.headers)
            and not _holds_part_of_prompt(request, target)
        ):
            raise PreconditionFailed("no decode worker has the requested KV cache")
        return result

    def _take_off(
        self, request: InferenceRequest, parser: Parser[Any] | None, result: SchedulingResult
    ) -> RequestFlight:
        """From here on the request is in flight: whatever happens, `flight.end` gives back what `on_picked` took."""
        target = result.target
        self.table.picked(target.rows, self._clock())
        flight = RequestFlight(
            request, target.picked[0].host_port, parser, self._recorder, self._response_hooks, self._clock
        )
        try:
            for guarded in self._on_picked:
                guarded.run(request, result)
            for observe in self._observers:
                observe(request, result)
            flight.decision = self._decision(request, parser, result, target)
        except BaseException:
            flight.abandon()
            raise
        request.payload.release()
        if request.prompt is not None:
            request.prompt.release()
        request.body = b""  # the gateway's copy is what travels on; ours would live as long as the answer takes
        return flight

    def _decision(
        self, request: InferenceRequest, parser: Parser[Any] | None, result: SchedulingResult, target: ProfileResult
    ) -> Decision:
        body: bytes | None = None
        restore: tuple[str, str] | None = None
        if parser is not None and request.target_model != request.model:
            body = parser.rewrite_model(request.payload, request.body, request.target_model)
            restore = (request.target_model, request.model) if request.model else None
        return Decision(
            destination=result.destination or ",".join(map(_HOST_PORT, target.picked)),
            set_headers=result.headers,
            body=body,
            restore_model=restore,
            scores=dict(zip(target.candidates.addresses(), target.scores.tolist(), strict=True))
            if self._settings.emit_scores
            else None,
            skip_response=request.payload.skip_response,
        )


async def _within(seconds: float, producing: Awaitable[None]) -> None:
    """Not `wait_for`: before Python 3.12 that loses a cancellation which comes together with the data, and a request
    whose client has gone would still be given an endpoint."""
    async with asyncio.timeout(seconds):
        await producing


def _cancelled() -> bool:
    """Whether a `CancelledError` is meant for this task; else it comes from something that a plugin awaited."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _holds_part_of_prompt(request: InferenceRequest, target: ProfileResult) -> bool:
    """Whether the picked endpoint has at least one block of the prompt, as told by any configured producer."""
    position = target.candidates.position(target.rows[0])
    for key in request.attributes:
        if key.type == PREFIX_CACHE_MATCH:
            match = prefix_match(request, target.candidates, key.producer)
            if match is not None and match.cached_blocks[position] > 0:
                return True
    return False
