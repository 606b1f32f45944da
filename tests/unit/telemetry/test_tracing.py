"""Spans through the SDK's in-memory exporter, the context in headers, and what the environment asks for."""

from __future__ import annotations

import logging
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from epp.telemetry import tracing
from epp.telemetry.tracing import NULL_SPAN, NullTracer, OpenTelemetryTracer, tracer_from_environment

LOG = logging.getLogger("test")
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01", "tracestate": "v=1", "baggage": "user=a"}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-00"}


def in_memory() -> tuple[OpenTelemetryTracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OpenTelemetryTracer(provider), exporter


def test_spans_are_nested_below_the_gateways() -> None:
    tracer, exporter = in_memory()
    request = tracer.request(SAMPLED)
    orchestration = request.child(tracing.ORCHESTRATION)
    pick = orchestration.child(tracing.PICK)
    pick.set(tracing.TOP_ENDPOINTS, ["a", "b"])
    pick.set(tracing.TOP_SCORES, [0.9, 0.1])
    for span in (pick, orchestration, request):
        span.end()
    by_name = {span.name: span for span in exporter.get_finished_spans()}
    root, middle, leaf = (by_name[n] for n in (tracing.REQUEST, tracing.ORCHESTRATION, tracing.PICK))
    assert f"{root.context.trace_id:032x}" == TRACE_ID
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
    assert root.kind is SpanKind.SERVER
    assert middle.parent.span_id == root.context.span_id
    assert leaf.parent.span_id == middle.context.span_id
    assert dict(leaf.attributes) == {tracing.TOP_ENDPOINTS: ("a", "b"), tracing.TOP_SCORES: (0.9, 0.1)}
    tracer.shutdown()


def test_the_context_travels_on() -> None:
    tracer, exporter = in_memory()
    request = tracer.request(SAMPLED)
    headers = request.headers()
    request.end()
    (span,) = exporter.get_finished_spans()
    assert headers == {
        "traceparent": f"00-{TRACE_ID}-{span.context.span_id:016x}-01",
        "tracestate": "v=1",
        "baggage": "user=a",
    }


def test_a_request_that_is_not_sampled_has_no_children_but_a_context() -> None:
    tracer, exporter = in_memory()
    request = tracer.request(UNSAMPLED)
    assert not request.recording
    assert request.child(tracing.PROFILE) is NULL_SPAN
    assert request.headers()["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert request.headers()["traceparent"].endswith("-00")
    request.fail(ValueError("x"))
    request.end()
    assert exporter.get_finished_spans() == ()


def test_a_malformed_context_begins_a_new_trace() -> None:
    tracer, exporter = in_memory()
    tracer.request({"traceparent": "00-nonsense", "baggage": ";;;="}).end()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_failures_are_marked() -> None:
    tracer, exporter = in_memory()
    request = tracer.request({})
    request.fail(LookupError("no endpoints"))
    request.end()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "no endpoints"
    assert span.events[0].name == "exception"


def test_off_is_nothing() -> None:
    tracer = tracer_from_environment({}, LOG)
    assert isinstance(tracer, NullTracer)
    assert not tracer.enabled
    span = tracer.request(SAMPLED)
    span.set("a", 1)
    span.fail(ValueError())
    span.end()
    assert span is NULL_SPAN
    assert span.child("x") is span
    assert span.headers() == {}
    tracer.shutdown()
    assert not tracer_from_environment(
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, LOG
    ).enabled


def test_unknown_exporters_are_refused() -> None:
    with pytest.raises(ValueError, match="'zipkin' is none of otlp, console, none"):
        tracer_from_environment({"OTEL_TRACES_EXPORTER": "zipkin"}, LOG)


def test_a_missing_extra_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(RuntimeError, match=r"pip install 'epp\[otel\]'"):
        tracer_from_environment({"OTEL_TRACES_EXPORTER": "otlp"}, LOG)


def provider_of(environ: dict[str, str]) -> TracerProvider:
    tracer = tracer_from_environment(environ, LOG, version="1.2")
    assert isinstance(tracer, OpenTelemetryTracer)
    tracer.shutdown()
    return tracer._provider


def test_service_name_and_sampler() -> None:
    provider = provider_of({"OTEL_TRACES_EXPORTER": "console"})
    assert provider.resource.attributes["service.name"] == "llm-d-epp"
    assert provider.resource.attributes["service.version"] == "1.2"
    assert "TraceIdRatioBased{0.1}" in provider.sampler.get_description()
    provider = provider_of(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_SERVICE_NAME": "mine",
            "OTEL_TRACES_SAMPLER": "always_off",
        }
    )
    assert provider.resource.attributes["service.name"] == "mine"
    assert provider.sampler.get_description() == "AlwaysOffSampler"
    provider = provider_of(
        {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name=from-attributes",
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.5",
        }
    )
    assert provider.resource.attributes["service.name"] == "from-attributes"
    assert provider.sampler.get_description() == "TraceIdRatioBased{0.5}"


def test_samplers_that_make_no_sense_fall_back_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    provider = provider_of(
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER": "jaeger", "OTEL_TRACES_SAMPLER_ARG": "7"}
    )
    assert "TraceIdRatioBased{0.1}" in provider.sampler.get_description()
    assert "OTEL_TRACES_SAMPLER='jaeger'" in caplog.text
    assert "OTEL_TRACES_SAMPLER_ARG='7'" in caplog.text
