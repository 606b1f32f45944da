"""Names, labels and buckets of the request metrics, their deprecated twins, and what the recorder puts into them."""

from __future__ import annotations

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from epp.api.endpoints import Endpoint, EndpointTable
from epp.api.errors import BadRequest
from epp.api.keys import DataKey
from epp.api.request import InferenceRequest, InferenceResponse, Payload, TerminationCause, Usage
from epp.telemetry.exposition import render_now
from epp.telemetry.legacy_metrics import add_legacy_metrics
from epp.telemetry.metrics import MAX_SERIES, Registry
from epp.telemetry.recorder import SETTLE_AFTER, MetricsRecorder, PluginRecorder
from epp.telemetry.request_metrics import RequestMetrics, StreamMetrics

LABELS = {"model_name", "target_model_name", "fairness_id", "priority"}
GENERAL = (
    "0.005 0.025 0.05 0.1 0.2 0.4 0.6 0.8 1 1.25 1.5 2 3 4 5 6 8 10 15 20 30 45 60 120 "
    "180 240 300 360 480 600 900 1200 1800 2700 3600"
)
POWERS = "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384 32778 65536"
REQUEST_SIZES = (
    "64 128 256 512 1024 2048 4096 8192 16384 32768 65536 131072 262144 524288 1.048576e+06 2.097152e+06 "
    "4.194304e+06 8.388608e+06 1.6777216e+07 3.3554432e+07 6.7108864e+07 1.34217728e+08 2.68435456e+08 "
    "5.36870912e+08 1.073741824e+09"
)
BUCKETS = {
    "request_duration_seconds": GENERAL,
    "request_size_bytes": REQUEST_SIZES,
    "response_size_bytes": POWERS,
    "request_input_tokens": POWERS + " 131072 262144 524288 1.048576e+06",
    "request_cached_tokens": POWERS + " 131072 262144 524288 1.048576e+06",
    "request_output_tokens": "1 8 16 32 64 128 256 512 1024 2048 4096 8192",
    "request_ntpot_seconds": "0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10",
    "request_ttft_seconds": GENERAL[: GENERAL.index(" 180")],
    "request_streaming_tpot_seconds": (
        "0.0005 0.00205 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.125 0.15 0.2 0.3 0.4 0.5 0.6 0.8 1 2"
    ),
    "request_streaming_itl_seconds": "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.15 0.2 0.3 0.5 0.75 1 2",
    "scheduler_e2e_duration_seconds": "0.0001 0.0002 0.0005 0.001 0.002 0.005 0.01 0.02 0.05 0.1",
    "plugin_duration_seconds": "0.0001 0.0002 0.0005 0.001 0.002 0.005 0.01 0.02 0.05 0.1",
    "request_processing_duration_seconds": (
        "0.0005 0.001 0.002 0.005 0.01 0.015 0.025 0.04 0.06 0.1 0.25 0.5 1 2.5 5 10"
    ),
    "response_processing_duration_seconds": (
        "0.0001 0.00025 0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5"
    ),
    "extproc_stream_duration_seconds": "0.001 0.005 0.01 0.05 0.1 0.5 1 5 10 30 60 120 300 600",
}


class Page:
    """A parsed page: `value(name, label=...)`."""

    def __init__(self, registry: Registry) -> None:
        self.samples = [s for family in parse(render_now(registry).decode()) for s in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The one sample with these labels."""
        found = [s.value for s in self.samples if s.name == name and s.labels == labels]
        assert len(found) == 1, f"{name}{labels}: {found}"
        return found[0]

    def names(self) -> set[str]:
        """Names of all samples."""
        return {s.name for s in self.samples}


def request(**changes: object) -> InferenceRequest:
    values: dict[str, object] = {
        "id": "r", "headers": {}, "path": "/v1/completions", "body": b"", "payload": Payload(), "received_at": 10.0,
        "model": "m", "target_model": "t", "fairness_id": "f", "priority": 3, "body_size": 500,
    }  # fmt: skip
    return InferenceRequest(**{**values, **changes})  # type: ignore[arg-type]


def touch_everything(metrics: RequestMetrics) -> None:
    series = metrics.series("m", "t", "f", 3)
    series.total.inc()
    series.running.inc()
    series.errors("BadRequest").inc()
    for name in ("duration", "request_size", "response_size", "input_tokens", "cached_tokens", "output_tokens"):
        getattr(series, name).observe(1)
    for name in ("ntpot", "ttft_streaming", "ttft_unary", "tpot", "itl"):
        getattr(series, name).observe(1)
    metrics.scheduler_attempts.labels("success", "t", "pod", "ns", "8000").inc()
    metrics.plugin_duration.labels("Scorer", "queue-scorer", "q").observe(0.001)
    metrics.plugin_errors.labels("Scorer", "queue-scorer", "q").inc()


def test_names_labels_and_buckets_are_those_of_llm_d_router() -> None:
    registry = Registry()
    touch_everything(RequestMetrics(registry))
    StreamMetrics(registry)
    by_name: dict[str, list[str]] = {}
    labels: dict[str, set[str]] = {}
    for sample in Page(registry).samples:
        name = sample.name.removeprefix("llm_d_epp_")
        labels[name] = set(sample.labels) - {"le"}
        if name.endswith("_bucket"):
            bounds = by_name.setdefault(name.removesuffix("_bucket"), [])
            if sample.labels["le"] not in bounds:
                bounds.append(sample.labels["le"])
    assert {name: " ".join(bounds[:-1]) for name, bounds in by_name.items()} == BUCKETS
    assert labels["request_total"] == LABELS
    assert labels["request_running"] == LABELS
    assert labels["request_error_total"] == {*LABELS, "error_code"}
    assert labels["request_ttft_seconds_bucket"] == {*LABELS, "streaming"}
    for name in ("request_streaming_itl_seconds", "request_duration_seconds", "request_size_bytes"):
        assert labels[name + "_bucket"] == LABELS
    assert labels["scheduler_attempts_total"] == {
        "status", "target_model_name", "endpoint_name", "namespace", "port",
    }  # fmt: skip
    assert labels["plugin_duration_seconds_bucket"] == {"extension_point", "plugin_type", "plugin_name"}


def test_series_are_cached_and_share_families() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    again = RequestMetrics(registry)
    assert metrics.series("m", "t", "f", 0) is metrics.series("m", "t", "f", 0)
    assert metrics.series("m", "t", "f", 0).total is again.series("m", "t", "f", 0).total
    assert metrics.itl_bounds == metrics.series("m", "t", "f", 0).itl.bounds


def test_what_never_happened_is_not_on_the_page() -> None:
    registry = Registry()
    RequestMetrics(registry).series("m", "t", "f", 0).total.inc()
    assert "llm_d_epp_request_streaming_itl_seconds_bucket" not in Page(registry).names()


def test_series_of_invented_models_are_bounded() -> None:
    registry = Registry(max_series=1500)
    metrics = RequestMetrics(registry)
    for i in range(1100):
        metrics.series(f"m{i}", f"m{i}", "f", 0).total.inc()
    assert metrics.series("m2000", "m2000", "f", 0) is metrics.series("other", "other", "f", 0)
    assert metrics.series("m2000", "m2000", "f", 0).total.value == 100
    for i in range(600):
        metrics.series("m1", "m1", f"fairness{i}", 0).total.inc()
    assert metrics.series("m1", "m1", "fairness-late", 0) is metrics.series("other", "other", "other", 0)


def test_twins_are_sums_over_the_labels_they_do_not_have() -> None:
    registry = Registry()
    add_legacy_metrics(registry)
    metrics = RequestMetrics(registry)
    for fairness, priority, seconds in (("a", 0, 0.01), ("b", 0, 0.3), ("b", 1, 100.0)):
        series = metrics.series("m", "t", fairness, priority)
        series.total.inc()
        series.running.inc()
        series.duration.observe(seconds)
        series.errors("BadRequest").inc()
    metrics.scheduler_attempts.labels("success", "t", "pod-a", "ns", 8000).inc()
    metrics.info("abc", "v1")
    page = Page(registry)
    models = {"model_name": "m", "target_model_name": "t"}
    assert page.value("inference_objective_request_total", **models, priority="0") == 2
    assert page.value("inference_objective_request_total", **models, priority="1") == 1
    assert page.value("inference_objective_running_requests", model_name="m") == 3
    assert page.value("inference_objective_request_error_total", **models, error_code="BadRequest") == 3
    old = "inference_objective_request_duration_seconds"
    assert page.value(old + "_count", **models) == 3
    assert page.value(old + "_sum", **models) == pytest.approx(100.31)
    assert page.value(old + "_bucket", **models, le="0.4") == 2
    assert page.value(
        "inference_extension_scheduler_attempts_total",
        status="success", target_model_name="t", pod_name="pod-a", namespace="ns", port="8000",
    ) == 1  # fmt: skip
    assert page.value("inference_extension_info", commit="abc", build_ref="v1") == 1
    # The sums are made for the page; the source is as it was.
    assert metrics.series("m", "t", "a", 0).duration.count == 1


def test_a_streamed_request_from_pick_to_end() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    recorder = MetricsRecorder(metrics, logging.getLogger("t"), lambda: 0.0)
    asked = request()
    recorder.began(asked, 10.002)
    labels = {"model_name": "m", "target_model_name": "t", "fairness_id": "f", "priority": "3"}
    assert Page(registry).value("llm_d_epp_request_running", **labels) == 1
    counts = [0] * (len(recorder.itl_bounds) + 1)
    counts[3] = 4
    response = InferenceResponse(
        status=200, streaming=True, first_chunk_at=10.5, last_chunk_at=10.58, body_size=900,
        usage=Usage(prompt_tokens=100, completion_tokens=5, cached_tokens=0),
    )  # fmt: skip
    recorder.ended(asked, response, counts, 10.6)
    page = Page(registry)
    prefix = "llm_d_epp_request_"
    assert page.value(prefix + "running", **labels) == 0
    assert page.value(prefix + "total", **labels) == 1
    assert page.value(prefix + "duration_seconds_sum", **labels) == pytest.approx(0.6)
    assert page.value(prefix + "size_bytes_sum", **labels) == 500
    assert page.value("llm_d_epp_response_size_bytes_sum", **labels) == 900
    assert page.value(prefix + "input_tokens_sum", **labels) == 100
    assert page.value(prefix + "cached_tokens_count", **labels) == 1
    assert page.value(prefix + "output_tokens_sum", **labels) == 5
    assert page.value(prefix + "ntpot_seconds_sum", **labels) == pytest.approx(0.12)
    assert page.value(prefix + "ttft_seconds_sum", **labels, streaming="true") == pytest.approx(0.5)
    assert page.value(prefix + "streaming_tpot_seconds_sum", **labels) == pytest.approx(0.025)
    assert page.value(prefix + "streaming_itl_seconds_count", **labels) == 4
    assert page.value(prefix + "streaming_itl_seconds_sum", **labels) == pytest.approx(0.08)
    assert page.value(prefix + "processing_duration_seconds_sum") == pytest.approx(0.002)
    assert prefix + "error_total" not in page.names()


def test_a_unary_answer_with_an_error_status() -> None:
    registry = Registry()
    recorder = MetricsRecorder(RequestMetrics(registry), logging.getLogger("t"), lambda: 0.0)
    asked = request()
    recorder.began(asked, 10.0)
    recorder.ended(asked, InferenceResponse(status=503, first_chunk_at=10.5, last_chunk_at=10.5), None, 11.0)
    page = Page(registry)
    labels = {"model_name": "m", "target_model_name": "t", "fairness_id": "f", "priority": "3"}
    assert page.value("llm_d_epp_request_error_total", **labels, error_code="ModelServerError") == 1
    assert page.value("llm_d_epp_request_ttft_seconds_count", **labels, streaming="false") == 1
    assert "llm_d_epp_request_output_tokens_count" not in page.names()


def test_a_body_that_was_not_shown_has_no_size() -> None:
    registry = Registry()
    recorder = MetricsRecorder(RequestMetrics(registry), logging.getLogger("t"), lambda: 0.0)
    asked = request()
    recorder.began(asked, 10.0)
    recorder.ended(asked, InferenceResponse(status=200), None, 11.0)
    names = Page(registry).names()
    assert "llm_d_epp_request_duration_seconds_count" in names
    assert "llm_d_epp_response_size_bytes_count" not in names


def test_nothing_is_said_of_responses_that_are_not_seen() -> None:
    registry = Registry()
    recorder = MetricsRecorder(RequestMetrics(registry), logging.getLogger("t"), lambda: 0.0, response_seen=False)
    asked = request()
    recorder.began(asked, 10.0)
    recorder.ended(asked, InferenceResponse(cause=TerminationCause.NATURAL), None, 10.001)
    page = Page(registry)
    assert "llm_d_epp_request_duration_seconds_count" not in page.names()
    assert {s.value for s in page.samples if s.name == "llm_d_epp_request_running"} == {0}


def test_refusals_and_scheduling() -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    recorder = MetricsRecorder(metrics, logging.getLogger("t"), lambda: 0.0)
    recorder.refused(None, BadRequest("no model"))
    recorder.refused(request(), BadRequest("no prompt"))
    table = EndpointTable()
    recorder.watch(table)
    endpoint = Endpoint("pod-rank-0", "10.0.0.1", 8000, "ns", pod="pod")
    table.add(endpoint)
    recorder.scheduled(request(), endpoint, 0.0003)
    recorder.scheduling_failed(request(), 0.0001)
    page = Page(registry)
    unknown = {"model_name": "", "target_model_name": "", "fairness_id": "", "priority": "0"}
    assert page.value("llm_d_epp_request_error_total", **unknown, error_code="BadRequest") == 1
    attempts = "llm_d_epp_scheduler_attempts_total"
    where = {"endpoint_name": "pod", "namespace": "ns", "port": "8000"}
    assert page.value(attempts, status="success", target_model_name="t", **where) == 1
    nowhere = {"endpoint_name": "", "namespace": "", "port": ""}
    assert page.value(attempts, status="failure", target_model_name="t", **nowhere) == 1
    assert page.value("llm_d_epp_scheduler_e2e_duration_seconds_count") == 2
    table.remove("10.0.0.1:8000")
    assert {s.labels["status"] for s in Page(registry).samples if s.name == attempts} == {"failure"}


def test_an_endpoint_that_comes_back_under_another_name_counts_under_it() -> None:
    registry = Registry()
    recorder = MetricsRecorder(RequestMetrics(registry), logging.getLogger("t"), lambda: 0.0)
    table = EndpointTable()
    recorder.watch(table)
    attempts = "llm_d_epp_scheduler_attempts_total"
    for name in ("old", "new"):
        endpoint = Endpoint(name, "10.0.0.1", 8000, "ns")
        table.add(endpoint)
        for _ in range(2):
            recorder.scheduled(request(), endpoint, 0.001)
        shown = {s.labels["endpoint_name"]: s.value for s in Page(registry).samples if s.name == attempts}
        assert shown == {name: 2}
        table.remove("10.0.0.1:8000")


def test_endpoints_that_are_counted_by_name_are_bounded() -> None:
    recorder = MetricsRecorder(RequestMetrics(Registry()), logging.getLogger("t"), lambda: 0.0)
    endpoint = Endpoint("pod", "10.0.0.1", 8000, "ns")
    for number in range(MAX_SERIES + 10):
        recorder.scheduled(request(target_model=f"m{number}"), endpoint, 0.001)
        assert len(recorder._successes) <= MAX_SERIES


def test_durations_wait_for_so_many_requests_at_most() -> None:
    metrics = RequestMetrics(Registry())
    recorder = MetricsRecorder(metrics, logging.getLogger("t"), lambda: 0.0)
    plugins = PluginRecorder(metrics, logging.getLogger("t"), lambda: 0.0)
    tally = plugins.duration("Scorer", "queue-scorer", "q")
    for number in range(3 * SETTLE_AFTER):
        tally.observe(0.1)
        if number % 2:
            recorder.began(request(), 10.0)
        else:
            recorder.refused(None, BadRequest("no model"))
        assert len(tally._values) < SETTLE_AFTER
    assert metrics.plugin_duration.labels("Scorer", "queue-scorer", "q").count == 3 * SETTLE_AFTER


def test_failures_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    metrics = RequestMetrics(registry)
    now = 0.0
    recorder = MetricsRecorder(metrics, logging.getLogger("t"), lambda: now)
    plugins = PluginRecorder(metrics, logging.getLogger("t"), lambda: now)
    plugins.duration("Scorer", "queue-scorer", "q").observe(0.1)
    for _ in range(3):
        recorder.unexpected(KeyError("x"))
        plugins.failed("Scorer", "queue-scorer", "q", ValueError("boom"))
    assert len(caplog.records) == 2
    assert "plugin q (queue-scorer) failed in Scorer" in caplog.text
    now = 61.0
    plugins.failed("Scorer", "queue-scorer", "q", ValueError("boom"))
    assert vars(caplog.records[-1])["suppressed"] == 2
    page = Page(registry)
    labels = {"extension_point": "Scorer", "plugin_type": "queue-scorer", "plugin_name": "q"}
    assert page.value("llm_d_epp_plugin_errors_total", **labels) == 4
    assert page.value("llm_d_epp_internal_errors_total", kind="KeyError") == 3


def test_what_a_plugin_does_not_declare_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    plugins = PluginRecorder(RequestMetrics(registry), logging.getLogger("t"), lambda: 0.0)
    for _ in range(2):
        plugins.violated("Scorer", "mine", "m", "read", DataKey("Colour", "theirs"))
    plugins.violated("DataProducer", "mine", "m", "write", DataKey("Hue", "its"))
    labels = {"plugin_type": "mine", "plugin_name": "m"}
    name = "llm_d_epp_plugin_data_scope_violations_total"
    page = Page(registry)
    assert page.value(name, extension_point="Scorer", access="read", **labels) == 2
    assert page.value(name, extension_point="DataProducer", access="write", **labels) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "plugin m (mine) tried to read Colour/theirs in Scorer, which it does not declare: name it in `consumes`",
        "plugin m (mine) tried to write Hue/its in DataProducer, which it does not declare: name it in `produces`",
    ]


def test_stream_metrics() -> None:
    registry = Registry()
    streams = StreamMetrics(registry)
    streams.opened()
    streams.opened()
    streams.closed("Canceled", 0.2)
    page = Page(registry)
    assert page.value("llm_d_epp_extproc_streams_inflight") == 1
    assert page.value("llm_d_epp_extproc_streams_total", code="Canceled") == 1
    assert page.value("llm_d_epp_extproc_stream_duration_seconds_sum") == pytest.approx(0.2)
