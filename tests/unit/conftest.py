"""Spans where a test can look at them, and the declarations of the plugins that ship under watch."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from epp.scheduling import scope
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


@pytest.fixture(autouse=True)
def every_plugin_in_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here also the plugins that ship get what they declare and no more: this is why the picker may trust them."""
    monkeypatch.setattr(scope, "SHIPPED", ())
