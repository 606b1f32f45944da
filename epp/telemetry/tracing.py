"""Spans of a request, with llm-d-router's names, and the W3C context (`traceparent`, `tracestate`, `baggage`).

Off unless it is asked for: callers that check `tracer.enabled` then pay one attribute look-up.
A request that the sampler leaves out has a root span, so that the context travels on, and no children.
OpenTelemetry is the extra `otel`; nothing of it is imported before a tracer is built.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer as OtelTracer

REQUEST = "gateway.request"
ORCHESTRATION = "gateway.request_orchestration"
PROFILE = "run_scheduler_profile"
FILTERS = "filter_endpoints"
SCORING = "llm_d.epp.scoring"
SCORER = "llm_d.epp.scorer."
PICK = "pick_endpoints"

PROFILE_NAME = "llm_d.epp.scheduling.profile.name"
FILTER_CANDIDATES = "llm_d.epp.filter.candidate_endpoints"
FILTER_FILTERED = "llm_d.epp.filter.filtered_endpoints"
SCORER_COUNT = "llm_d.epp.scorer.count"
SCORING_CANDIDATES = "llm_d.epp.scoring.candidate_endpoints"
SCORER_TYPE = "llm_d.epp.scorer.type"
SCORER_NAME = "llm_d.epp.scorer.name"
SCORER_WEIGHT = "llm_d.epp.scorer.weight"
SCORE_MAX = "llm_d.epp.scorer.score.max"
SCORE_AVG = "llm_d.epp.scorer.score.avg"
PICKER_CANDIDATES = "llm_d.epp.picker.candidate_endpoints"
TOP_ENDPOINTS = "llm_d.epp.picker.top_endpoints"
TOP_SCORES = "llm_d.epp.picker.top_scores"

SERVICE_NAME = "llm-d-epp"
_SCOPE = "llm-d-router"
_RATIO = 0.1
_FIX = "install the extra: pip install 'epp[otel]', or start with --tracing=false"

Value = str | bool | int | float | Sequence[str] | Sequence[float]


class Span(Protocol):
    """One step of a request."""

    recording: bool
    """False: nobody will see it; attributes that cost something to compute may be left out."""

    def set(self, key: str, value: Value) -> None:
        """Set an attribute."""

    def fail(self, error: BaseException) -> None:
        """Mark the span as failed."""

    def child(self, name: str) -> Span:
        """Begin a step within this one."""

    def headers(self) -> dict[str, str]:
        """The headers that carry this span's context to the next server."""

    def end(self) -> None:
        """The step is over."""


class Tracer(Protocol):
    """Begins spans. `enabled` False: do not even ask."""

    enabled: bool

    def request(self, headers: Mapping[str, str]) -> Span:
        """Begin `gateway.request` below the span that the request's headers name."""

    def shutdown(self) -> None:
        """Send what is still queued."""


class NullSpan:
    """A span that nobody sees."""

    __slots__ = ()
    recording = False

    def set(self, key: str, value: Value) -> None:
        """Nothing."""

    def fail(self, error: BaseException) -> None:
        """Nothing."""

    def child(self, name: str) -> Span:
        """Itself."""
        return self

    def headers(self) -> dict[str, str]:
        """None."""
        return {}

    def end(self) -> None:
        """Nothing."""


NULL_SPAN = NullSpan()


class NullTracer:
    """Tracing is off."""

    enabled = False

    def request(self, headers: Mapping[str, str]) -> Span:
        """A span that nobody sees."""
        return NULL_SPAN

    def shutdown(self) -> None:
        """Nothing."""


class _RecordedSpan:
    """A span of OpenTelemetry, with its context."""

    __slots__ = ("_context", "_span", "_tracer", "recording")

    def __init__(self, tracer: OpenTelemetryTracer, span: OtelSpan, context: Context) -> None:
        self._tracer = tracer
        self._span = span
        self._context = context
        self.recording = span.is_recording()

    def set(self, key: str, value: Value) -> None:
        self._span.set_attribute(key, value)

    def fail(self, error: BaseException) -> None:
        from opentelemetry.trace import Status, StatusCode

        if self.recording:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))

    def child(self, name: str) -> Span:
        return self._tracer.start(name, self._context) if self.recording else NULL_SPAN

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._tracer.propagator.inject(carrier, context=self._context)
        return carrier

    def end(self) -> None:
        self._span.end()


class OpenTelemetryTracer:
    """Spans through the OpenTelemetry SDK; `provider` says where they go and which are kept."""

    enabled = True

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.baggage.propagation import W3CBaggagePropagator
        from opentelemetry.propagators.composite import CompositePropagator
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer: OtelTracer = provider.get_tracer(_SCOPE)
        self.propagator = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])

    def request(self, headers: Mapping[str, str]) -> Span:
        """Begin `gateway.request` below the span that `traceparent` names; a malformed one is ignored."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        parent = self.propagator.extract(headers, context=Context())
        return self.start(REQUEST, parent, SpanKind.SERVER)

    def start(self, name: str, parent: Context, kind: Any = None) -> Span:
        """Begin a span below the one in `parent`."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(name, context=parent, kind=SpanKind.INTERNAL if kind is None else kind)
        return _RecordedSpan(self, span, set_span_in_context(span, parent))

    def shutdown(self) -> None:
        """Send what is still queued; waits for the exporter's time-out at most."""
        self._provider.shutdown()


def tracer_from_environment(environ: Mapping[str, str], log: logging.Logger, *, version: str = "") -> Tracer:
    """The tracer that the `OTEL_*` variables ask for.

    `OTEL_TRACES_EXPORTER`: `otlp` (gRPC), `console` or `none`; when it is not set, `otlp` if an OTLP endpoint is, else
    tracing is off. Raises RuntimeError when tracing is asked for and OpenTelemetry is not installed, ValueError for an
    exporter that does not exist.
    """
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip() or ("otlp" if endpoint else "none")
    if exporter == "none":
        return NullTracer()
    if exporter not in ("otlp", "console"):
        raise ValueError(f"OTEL_TRACES_EXPORTER={exporter!r} is none of otlp, console, none")
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        processor = _otlp_processor(endpoint) if exporter == "otlp" else _console_processor()
    except ImportError as error:
        raise RuntimeError(
            f"OTEL_TRACES_EXPORTER={exporter} asks for traces, but {error.name or error} is missing: {_FIX}"
        ) from error
    resource = Resource.create({"service.name": _service_name(environ), "service.version": version})
    provider = TracerProvider(resource=resource, sampler=_sampler(environ, log))
    provider.add_span_processor(processor)
    log.info("tracing is on: exporter %s, sampler %s", exporter, provider.sampler.get_description())
    return OpenTelemetryTracer(provider)


def _otlp_processor(endpoint: str | None) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Without an endpoint the collector is expected beside us, in plaintext.
    return BatchSpanProcessor(OTLPSpanExporter() if endpoint else OTLPSpanExporter("localhost:4317", insecure=True))


def _console_processor() -> SpanProcessor:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    return BatchSpanProcessor(ConsoleSpanExporter())


def _service_name(environ: Mapping[str, str]) -> str:
    name = environ.get("OTEL_SERVICE_NAME")
    if name:
        return name
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == "service.name" and value.strip():
            return value.strip()
    return SERVICE_NAME


def _sampler(environ: Mapping[str, str], log: logging.Logger) -> Sampler:
    from opentelemetry.sdk.trace import sampling

    argument = environ.get("OTEL_TRACES_SAMPLER_ARG", "")
    try:
        ratio = float(argument) if argument else _RATIO
        by_ratio = sampling.TraceIdRatioBased(ratio)
    except ValueError:
        log.warning("OTEL_TRACES_SAMPLER_ARG=%r is no number from 0 to 1: %s is used", argument, _RATIO)
        by_ratio = sampling.TraceIdRatioBased(_RATIO)
    samplers: dict[str, Callable[[], Sampler]] = {
        "always_on": lambda: sampling.ALWAYS_ON,
        "always_off": lambda: sampling.ALWAYS_OFF,
        "traceidratio": lambda: by_ratio,
        "parentbased_always_on": lambda: sampling.ParentBased(sampling.ALWAYS_ON),
        "parentbased_always_off": lambda: sampling.ParentBased(sampling.ALWAYS_OFF),
        "parentbased_traceidratio": lambda: sampling.ParentBased(by_ratio),
    }
    name = environ.get("OTEL_TRACES_SAMPLER", "") or "parentbased_traceidratio"
    if name not in samplers:
        log.warning("OTEL_TRACES_SAMPLER=%r is none of %s: parentbased_traceidratio is used", name, ", ".join(samplers))
        name = "parentbased_traceidratio"
    return samplers[name]()
