"""What the director and the scheduler report, put into the metric families and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from epp.api.endpoints import Endpoint, EndpointTable
from epp.api.errors import RequestError
from epp.api.keys import DataKey
from epp.api.request import InferenceRequest, InferenceResponse
from epp.telemetry.logs import RateLimitedLog
from epp.telemetry.metrics import MAX_SERIES, Counter, Tally
from epp.telemetry.request_metrics import RequestMetrics, RequestSeries

MODEL_SERVER_ERROR = "ModelServerError"
"""`error_code` of a request that a model server answered with an error status."""


SETTLE_AFTER = 64
"""Requests whose durations wait to be counted: at some twenty each, a tenth of a millisecond of work."""


class MetricsRecorder:
    """Counts requests. `response_seen` False: the gateway does not show us responses, so nothing is said of them."""

    def __init__(
        self,
        metrics: RequestMetrics,
        log: logging.Logger,
        clock: Callable[[], float],
        *,
        response_seen: bool = True,
    ) -> None:
        self.itl_bounds = metrics.itl_bounds
        self._metrics = metrics
        self._log = RateLimitedLog(log, clock)
        self._response_seen = response_seen
        self._unsettled = 0
        self._successes: dict[tuple[str, str], tuple[Endpoint, Counter]] = {}  # by address and target model
        self._scheduler_duration = metrics.tally(metrics.scheduler_duration).observe
        self._request_processing = metrics.tally(metrics.request_processing).observe
        self._response_processing = metrics.tally(metrics.response_processing).observe

    def watch(self, table: EndpointTable) -> None:
        """Drop the series of endpoints that go away: pods come with new names for ever."""
        table.on_removed(lambda _row, endpoint: self._forget(endpoint))

    def refused(self, request: InferenceRequest | None, error: RequestError) -> None:
        """The client got `error` instead of a model server's answer."""
        self._unsettled += 1
        if self._unsettled >= SETTLE_AFTER:
            self._settle()
        series = self._series(request) if request is not None else self._metrics.series("", "", "", 0)
        series.errors(error.code).inc()

    def unexpected(self, error: BaseException) -> None:
        """A bug: counted, and logged with its traceback at most once a minute per kind."""
        kind = type(error).__name__
        self._metrics.internal_errors.labels(kind).inc()
        self._log.error(f"unexpected:{kind}", "unexpected %s: %s", kind, error, error=error)

    def scheduled(self, request: InferenceRequest, endpoint: Endpoint, seconds: float) -> None:
        """Scheduling succeeded after `seconds`."""
        self._scheduler_duration(seconds)
        key = endpoint.host_port, request.target_model
        known = self._successes.get(key)
        if known is None or known[0] is not endpoint:
            known = self._successes[key] = endpoint, self._success(request.target_model, endpoint)
        known[1].inc()

    def _success(self, target_model: str, endpoint: Endpoint) -> Counter:
        """The counter of one endpoint and model, to be kept."""
        if len(self._successes) >= MAX_SERIES:
            self._successes.clear()
        return self._metrics.scheduler_attempts.labels(
            "success", target_model, endpoint.pod or endpoint.name, endpoint.namespace, endpoint.port
        )

    def scheduling_failed(self, request: InferenceRequest, seconds: float) -> None:
        """Scheduling found no endpoint."""
        self._scheduler_duration(seconds)
        self._metrics.scheduler_attempts.labels("failure", request.target_model, "", "", "").inc()

    def began(self, request: InferenceRequest, now: float) -> None:
        """The request is on its way to a model server."""
        self._unsettled += 1
        if self._unsettled >= SETTLE_AFTER:
            self._settle()
        series = self._series(request)
        series.total.inc()
        series.running.inc()
        series.request_size.observe(request.body_size)
        self._request_processing(now - request.received_at)

    def ended(
        self, request: InferenceRequest, response: InferenceResponse, itl_counts: list[int] | None, now: float
    ) -> None:
        """The answer has ended, in whatever way."""
        series = self._series(request)
        series.running.dec()
        if not self._response_seen or request.payload.skip_response:
            return
        duration = now - request.received_at
        series.duration.observe(duration)
        if response.status >= 400:
            series.errors(MODEL_SERVER_ERROR).inc()
        if response.body_size:  # 0: there was none, or the gateway does not show it (the light mode)
            series.response_size.observe(response.body_size)
        self._usage(series, response, duration)
        if response.first_chunk_at is not None:
            self._latencies(series, request, response, itl_counts, duration)

    def processed(self, seconds: float) -> None:
        """Time spent on one response outside its body chunks."""
        self._response_processing(seconds)

    def _settle(self) -> None:
        """After so many requests that were picked or refused: count what plugins took for them."""
        self._unsettled = 0
        self._metrics.settle()

    def _usage(self, series: RequestSeries, response: InferenceResponse, duration: float) -> None:
        usage = response.usage
        if usage.prompt_tokens:
            series.input_tokens.observe(usage.prompt_tokens)
        if usage.cached_tokens is not None:
            series.cached_tokens.observe(usage.cached_tokens)
        if usage.completion_tokens:
            series.output_tokens.observe(usage.completion_tokens)
            series.ntpot.observe(duration / usage.completion_tokens)

    def _latencies(
        self,
        series: RequestSeries,
        request: InferenceRequest,
        response: InferenceResponse,
        itl_counts: list[int] | None,
        duration: float,
    ) -> None:
        first, last = response.first_chunk_at, response.last_chunk_at
        if first is None or last is None:
            return
        ttft = first - request.received_at
        if not response.streaming:
            series.ttft_unary.observe(ttft)
            return
        series.ttft_streaming.observe(ttft)
        tokens = response.usage.completion_tokens
        if tokens is not None and tokens > 1:
            series.tpot.observe((duration - ttft) / (tokens - 1))
        if itl_counts is not None:
            # The gaps between chunks add up to the time from the first to the last one.
            series.itl.add_counts(itl_counts, last - first, sum(itl_counts))

    def _series(self, request: InferenceRequest) -> RequestSeries:
        return self._metrics.series(request.model, request.target_model, request.fairness_id, request.priority)

    def _forget(self, endpoint: Endpoint) -> None:
        self._successes.clear()
        where = (endpoint.pod or endpoint.name, endpoint.namespace, str(endpoint.port))
        for values, _ in self._metrics.scheduler_attempts.children():
            if values[2:] == where:
                self._metrics.scheduler_attempts.remove(*values)


class PluginRecorder:
    """Durations and failures of plugins (`epp.scheduling.guard.PluginTimings`)."""

    def __init__(self, metrics: RequestMetrics, log: logging.Logger, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._log = RateLimitedLog(log, clock)

    def duration(self, extension_point: str, plugin_type: str, plugin_name: str) -> Tally:
        """For the histogram of one plugin at one extension point, in seconds.

        `MetricsRecorder` settles it, so that what waits is bounded by the requests between two times.
        """
        return self._metrics.tally(self._metrics.plugin_duration.labels(extension_point, plugin_type, plugin_name))

    def failed(self, extension_point: str, plugin_type: str, plugin_name: str, error: BaseException) -> None:
        """Count a failure, and log it with its traceback at most once a minute per plugin and extension point."""
        self._metrics.plugin_errors.labels(extension_point, plugin_type, plugin_name).inc()
        self._log.error(
            f"{extension_point}:{plugin_name}",
            "plugin %s (%s) failed in %s, and is skipped for this request: %s: %s",
            plugin_name,
            plugin_type,
            extension_point,
            type(error).__name__,
            error,
            error=error,
        )

    def violated(self, extension_point: str, plugin_type: str, plugin_name: str, access: str, key: DataKey) -> None:
        """Count an access to a data key that is not declared, and log it at most once a minute per plugin and key."""
        self._metrics.scope_violations.labels(extension_point, plugin_type, plugin_name, access).inc()
        self._log.error(
            f"{access}:{plugin_name}:{key}",
            "plugin %s (%s) tried to %s %s in %s, which it does not declare: %s",
            plugin_name,
            plugin_type,
            access,
            key,
            extension_point,
            "name it in `consumes`" if access == "read" else "name it in `produces`",
        )
