"""Spans where a test can look at them."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from epp.telemetry.tracing import OpenTelemetryTracer


@pytest.fixture
def exported() -> InMemorySpanExporter:
    """Holds every span that `tracer` finished."""
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exported: InMemorySpanExporter) -> OpenTelemetryTracer:
    """A real tracer that exports into `exported`."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return OpenTelemetryTracer(provider)
