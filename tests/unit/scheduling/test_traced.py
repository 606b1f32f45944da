"""Spans of a profile: present with their attributes when the request is traced, absent otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import epp
from epp.scheduling.profile import SchedulingProfile
from epp.scheduling.traced import step
from epp.telemetry.tracing import OpenTelemetryTracer
from epp.testing import context, endpoints, request


class NoTimings:
    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> Any:
        class Child:
            def observe(self, value: float) -> None:
                assert value >= 0

        return Child()

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        raise AssertionError(error)


class First(epp.Picker[epp.NoParams]):
    type = "first"

    def pick(self, request: Any, endpoints: epp.Endpoints, scores: epp.FloatArray) -> list[int]:
        return [0]


class Half(epp.Scorer[epp.NoParams]):
    type = "half"

    def score(self, request: Any, endpoints: epp.Endpoints) -> epp.Scores:
        return np.array([0.5, np.nan, 0.1])


class Nobody(epp.Filter[epp.NoParams]):
    type = "nobody"

    def filter(self, request: Any, endpoints: epp.Endpoints) -> epp.BoolArray:
        return np.zeros(len(endpoints), dtype=bool)


def profile(*filters: Any) -> SchedulingProfile:
    return SchedulingProfile(
        "default",
        filters=[kind(epp.NoParams(), context(kind.type)) for kind in filters],
        scorers=[(Half(epp.NoParams(), context("half")), 2.0)],
        picker=First(epp.NoParams(), context("first")),
        timings=NoTimings(),
        clock=lambda: 0.0,
    )


def test_spans_of_a_profile(tracer: OpenTelemetryTracer, exported: InMemorySpanExporter) -> None:
    asked = request()
    asked.span = tracer.request({})
    profile().run(asked, endpoints(3))
    asked.span.end()
    spans = {span.name: span for span in exported.get_finished_spans()}
    assert set(spans) == {
        "gateway.request",
        "run_scheduler_profile",
        "filter_endpoints",
        "llm_d.epp.scoring",
        "llm_d.epp.scorer.half",
        "pick_endpoints",
    }
    attributes = dict(spans["pick_endpoints"].attributes or {})
    assert attributes["llm_d.epp.picker.top_scores"] == pytest.approx((1.0, 0.6, 0.2))
    assert dict(spans["llm_d.epp.scorer.half"].attributes or {})["llm_d.epp.scorer.score.max"] == 0.5
    assert spans["llm_d.epp.scorer.half"].parent is not None
    assert spans["llm_d.epp.scorer.half"].parent.span_id == spans["llm_d.epp.scoring"].context.span_id


def test_a_refusal_marks_its_spans_and_gives_the_request_back(
    tracer: OpenTelemetryTracer, exported: InMemorySpanExporter
) -> None:
    asked = request()
    asked.span = outer = tracer.request({})
    with pytest.raises(epp.ResourceExhausted):
        profile(Nobody).run(asked, endpoints(3))
    assert asked.span is outer
    failed = {span.name for span in exported.get_finished_spans() if not span.status.is_ok}
    assert {"run_scheduler_profile", "filter_endpoints"} <= failed


def test_untraced_requests_have_no_spans(exported: InMemorySpanExporter) -> None:
    profile().run(request(), endpoints(3))
    with step(None, "nothing") as span:
        assert span is None
    assert not exported.get_finished_spans()
