"""The metric families of requests, scheduling and plugins, with llm-d-router's names, labels and buckets.

Everything that belongs to one combination of model, target model, fairness id and priority is a `RequestSeries`: looked
up once per request, and every observation after that is one method call.
"""

from __future__ import annotations

from typing import Any, Generic

from epp.telemetry.labels import OTHER
from epp.telemetry.metrics import ChildT, Counter, Family, Gauge, Histogram, Registry, Tally

# fmt: off
LATENCY = (
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120,
    180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600,
)
TTFT = LATENCY[: LATENCY.index(120) + 1]
SCHEDULING = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
REQUEST_PROCESSING = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
RESPONSE_PROCESSING = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
REQUEST_SIZE = tuple(64 * 2**n for n in range(25))
# 32778 is no mistake of ours: dashboards know the bucket under this name.
RESPONSE_SIZE = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536)
INPUT_TOKENS = (*RESPONSE_SIZE, 131072, 262144, 524288, 1048576)
OUTPUT_TOKENS = RESPONSE_SIZE[:12]
NTPOT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TPOT = (
    0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 2,
)
ITL = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2)
STREAM_DURATION = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)
# fmt: on

REQUEST_LABELS = ("model_name", "target_model_name", "fairness_id", "priority")
PLUGIN_LABELS = ("extension_point", "plugin_type", "plugin_name")


class _FirstTouch(Generic[ChildT]):
    """A child that is made when it is first asked for, and is an attribute like any other from then on.

    Not `__getattr__`: a class that has it pays for it with every attribute, found or not.
    """

    def __set_name__(self, owner: type[RequestSeries], name: str) -> None:
        self._name = name

    def __get__(self, series: RequestSeries, owner: type[RequestSeries]) -> ChildT:
        child: ChildT = series.made(self._name)
        series.__dict__[self._name] = child
        return child


class RequestSeries:
    """The children of one label combination. Each is made when it is first touched, so that what a model never does
    (streaming, for example) is not on the page."""

    total = _FirstTouch[Counter]()
    running = _FirstTouch[Gauge]()
    duration = _FirstTouch[Histogram]()
    request_size = _FirstTouch[Histogram]()
    response_size = _FirstTouch[Histogram]()
    input_tokens = _FirstTouch[Histogram]()
    cached_tokens = _FirstTouch[Histogram]()
    output_tokens = _FirstTouch[Histogram]()
    ntpot = _FirstTouch[Histogram]()
    ttft_streaming = _FirstTouch[Histogram]()
    ttft_unary = _FirstTouch[Histogram]()
    tpot = _FirstTouch[Histogram]()
    itl = _FirstTouch[Histogram]()

    def __init__(self, metrics: RequestMetrics, labels: tuple[str, str, str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._errors: dict[str, Counter] = {}

    def made(self, name: str) -> Any:
        """The child of one of the families."""
        family, more = self._metrics.request_families[name]
        return family.labels(*self._labels, *more)

    def errors(self, code: str) -> Counter:
        """The counter of one error code (`BadRequest`, `ModelServerError`, ...)."""
        child = self._errors.get(code)
        if child is None:
            child = self._errors[code] = self._metrics.errors.labels(*self._labels, code)
        return child


class RequestMetrics:
    """All families that the way of a request feeds. Building it twice over one registry gives the same families."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._series: dict[tuple[str, str, str, int], RequestSeries] = {}
        counter, histogram = registry.counter, registry.histogram

        def per_request(name: str, help: str, buckets: tuple[float, ...]) -> tuple[Family[Any], tuple[str, ...]]:
            return histogram(name, help, buckets, REQUEST_LABELS), ()

        ttft = histogram(
            "request_ttft_seconds",
            "Seconds from the request's headers to the first byte of the response body.",
            TTFT,
            (*REQUEST_LABELS, "streaming"),
        )
        self.errors = counter("request_error_total", "Requests that failed.", (*REQUEST_LABELS, "error_code"))
        self.request_families: dict[str, tuple[Family[Any], tuple[str, ...]]] = {
            "total": (counter("request_total", "Requests that were sent on to a model server.", REQUEST_LABELS), ()),
            "running": (registry.gauge("request_running", "Requests in flight.", REQUEST_LABELS), ()),
            "duration": per_request("request_duration_seconds", "Seconds from first to last byte.", LATENCY),
            "request_size": per_request("request_size_bytes", "Size of request bodies.", REQUEST_SIZE),
            "response_size": per_request("response_size_bytes", "Size of response bodies.", RESPONSE_SIZE),
            "input_tokens": per_request("request_input_tokens", "Prompt tokens per request.", INPUT_TOKENS),
            "cached_tokens": per_request(
                "request_cached_tokens",
                "Prompt tokens per request that the model server had in its cache.",
                INPUT_TOKENS,
            ),
            "output_tokens": per_request("request_output_tokens", "Generated tokens per request.", OUTPUT_TOKENS),
            "ntpot": per_request("request_ntpot_seconds", "Request duration per generated token.", NTPOT),
            "ttft_streaming": (ttft, ("true",)),
            "ttft_unary": (ttft, ("false",)),
            "tpot": per_request(
                "request_streaming_tpot_seconds",
                "Seconds per generated token after the first: (duration - TTFT) / (tokens - 1).",
                TPOT,
            ),
            "itl": per_request(
                "request_streaming_itl_seconds", "Seconds between two chunks of a streamed response.", ITL
            ),
        }
        self.scheduler_duration = histogram(
            "scheduler_e2e_duration_seconds", "Seconds that scheduling took.", SCHEDULING
        ).labels()
        self.scheduler_attempts = counter(
            "scheduler_attempts_total",
            "Attempts to schedule a request.",
            ("status", "target_model_name", "endpoint_name", "namespace", "port"),
        )
        self.request_processing = histogram(
            "request_processing_duration_seconds",
            "Seconds from a request's headers to the pick, waiting in queues included.",
            REQUEST_PROCESSING,
        ).labels()
        self.response_processing = histogram(
            "response_processing_duration_seconds",
            "Seconds that the picker spent on a response, without the time the model server took.",
            RESPONSE_PROCESSING,
        ).labels()
        self.plugin_duration = histogram(
            "plugin_duration_seconds", "Seconds that a plugin took.", SCHEDULING, PLUGIN_LABELS
        )
        self.plugin_errors = counter(
            "plugin_errors_total", "Failures of plugins: the plugin was skipped for that request.", PLUGIN_LABELS
        )
        self.scope_violations = counter(
            "plugin_data_scope_violations_total",
            "Accesses of a plugin to a data key that it does not declare: reads got nothing, writes failed.",
            (*PLUGIN_LABELS, "access"),
        )
        self.internal_errors = counter(
            "internal_errors_total", "Failures inside the picker that no rule foresees.", ("kind",)
        )
        self._info = registry.gauge("info", "What is running; always 1.", ("commit", "build_ref"))

    @property
    def itl_bounds(self) -> tuple[float, ...]:
        """Upper bounds of the inter-token latency buckets, in seconds."""
        bounds: tuple[float, ...] = self.request_families["itl"][0].bounds
        return bounds

    def series(self, model: str, target_model: str, fairness_id: str, priority: int) -> RequestSeries:
        """The children of one combination, cached; values beyond the bounds share `other`."""
        key = (model, target_model, fairness_id, priority)
        series = self._series.get(key)
        return series if series is not None else self._limited(key)

    def tally(self, histogram: Histogram) -> Tally:
        """Where a value comes with every request; `settle` counts it."""
        return self._registry.tally(histogram)

    def settle(self) -> None:
        """Count what waits in the registry's tallies."""
        self._registry.settle()

    def info(self, commit: str, build_ref: str) -> None:
        """Say what is running."""
        self._info.labels(commit, build_ref).set(1)

    def _limited(self, key: tuple[str, str, str, int]) -> RequestSeries:
        models, fairness = self._registry.limiters["model"], self._registry.limiters["fairness"]
        model, target_model, fairness_id, priority = key
        key = (models(model), models(target_model), fairness(fairness_id), priority)
        series = self._series.get(key)
        if series is None and len(self._series) >= self._registry.max_series:
            key = (OTHER, OTHER, OTHER, priority)
            series = self._series.get(key)
            self._registry.limited("requests")
        if series is None:
            series = self._series[key] = RequestSeries(self, (*key[:3], str(priority)))
        return series


class StreamMetrics:
    """Opt-in (`--enable-grpc-stream-metrics`): the gRPC streams of the gateway, as `epp.extproc` tells of them."""

    def __init__(self, registry: Registry) -> None:
        self._inflight = registry.gauge("extproc_streams_inflight", "Streams that are open.").labels()
        self._duration = registry.histogram(
            "extproc_stream_duration_seconds", "Seconds that a stream was open.", STREAM_DURATION
        ).labels()
        self._total = registry.counter("extproc_streams_total", "Streams that have ended.", ("code",))

    def opened(self) -> None:
        """A stream was opened."""
        self._inflight.inc()

    def closed(self, code: str, seconds: float) -> None:
        """A stream ended; `code` is the name of the gRPC status (`OK`, `Canceled`, ...)."""
        self._inflight.dec()
        self._duration.observe(seconds)
        self._total.labels(code).inc()
