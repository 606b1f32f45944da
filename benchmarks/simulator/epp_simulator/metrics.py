"""The `/metrics` page, in vLLM's exact format: names, labels, buckets, `_created` lines.

The gauges that a picker reads are rendered at every scrape. Counters and histograms, 90 % of the page, are rendered
at most twice a second: a fleet of simulated servers on a laptop would otherwise spend its time on them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from epp_simulator.engine import Engine, Job
from epp_simulator.fake_metrics import FakeMetrics
from epp_simulator.options import SimOptions

_SECONDS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
_GAPS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_HISTORY_SECONDS = 0.5


def _lengths(limit: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to the limit, as vLLM builds them."""
    bounds: list[float] = []
    power = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * power > limit:
                return tuple(bounds)
            bounds.append(float(mantissa * power))
        power *= 10


class _Families:
    """Metric families of a page: made once, with a series per engine."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._made: dict[str, Any] = {}

    def child(self, make: Any, name: str, text: str, labels: dict[str, str], **options: Any) -> Any:
        """The series with these labels."""
        if name not in self._made:
            self._made[name] = make(f"vllm:{name}", text, list(labels), registry=self._registry, **options)
        return self._made[name].labels(**labels)


class EngineMetrics:
    """Counters and histograms of one engine."""

    def __init__(self, options: SimOptions, rank: int, families: _Families) -> None:
        labels = {"model_name": options.names[0], "engine": str(rank)}
        lengths = _lengths(options.max_model_len)

        def counter(name: str, text: str) -> Any:
            return families.child(Counter, name, text, labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            return families.child(Histogram, name, text, labels, buckets=buckets)

        self.prefix_queries = counter("prefix_cache_queries", "Prefix cache queries, in number of queried tokens.")
        self.prefix_hits = counter("prefix_cache_hits", "Prefix cache hits, in number of cached tokens.")
        self.preemptions = counter("num_preemptions", "Cumulative number of preemption from the engine.")
        self.prompt_tokens = counter("prompt_tokens", "Number of prefill tokens processed.")
        self.generation_tokens = counter("generation_tokens", "Number of generation tokens processed.")
        self.success = {
            reason: families.child(
                Counter,
                "request_success",
                "Count of successfully processed requests.",
                labels | {"finished_reason": reason},
            )
            for reason in ("stop", "length", "abort", "error")
        }
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Number of prefill tokens processed.", lengths)
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Number of generation tokens processed.", lengths
        )
        self.params_max_tokens = histogram(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter.", lengths
        )
        self.ttft = histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT)
        self.itl = histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _GAPS)
        self.tpot = histogram(
            "request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", _GAPS
        )
        self.e2e = histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _SECONDS)
        phases = {"queue": "WAITING", "inference": "RUNNING", "prefill": "PREFILL", "decode": "DECODE"}
        self.phases = {
            phase: histogram(
                f"request_{phase}_time_seconds", f"Histogram of time spent in {state} phase for request.", _SECONDS
            )
            for phase, state in phases.items()
        }

    def finished(self, job: Job, max_tokens: int | None, reason: str) -> None:
        """Record a request that ended; `reason` as in vLLM's `finished_reason`."""
        now = time.perf_counter()
        self.success[reason].inc()
        self.prompt_tokens.inc(job.prompt_tokens)
        self.generation_tokens.inc(job.generated)
        self.prefix_queries.inc(job.prompt_tokens)
        self.prefix_hits.inc(job.cached_tokens)
        self.request_prompt_tokens.observe(job.prompt_tokens)
        self.request_generation_tokens.observe(job.generated)
        if max_tokens is not None:
            self.params_max_tokens.observe(max_tokens)
        if job.first_token:
            decode = now - job.first_token
            self.ttft.observe(job.first_token - job.arrived)
            self.phases["prefill"].observe(job.first_token - job.started)
            self.phases["decode"].observe(decode)
            if job.generated > 1:
                self.tpot.observe(decode / (job.generated - 1))
                self.itl.observe(decode / (job.generated - 1))
        if job.started:
            self.phases["queue"].observe(job.started - job.arrived)
            self.phases["inference"].observe(now - job.started)
        self.e2e.observe(now - job.arrived)


class ServerMetrics:
    """What one simulated server reports, about each of its engines."""

    def __init__(self, engines: Sequence[Engine], fakes: FakeMetrics) -> None:
        self._engines = engines
        self._fakes = fakes
        self._history = CollectorRegistry()
        self._rendered = b""
        self._rendered_at = float("-inf")
        families = _Families(self._history)
        self.engines = [EngineMetrics(engine.options, engine.rank, families) for engine in engines]

    def page(self) -> bytes:
        """The whole page."""
        now = time.monotonic()
        if now - self._rendered_at > _HISTORY_SECONDS:
            self._rendered = generate_latest(self._history)
            self._rendered_at = now
        return generate_latest(self._live()) + self._rendered

    def _live(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        families = _Families(registry)
        for engine in self._engines:
            self._gauges(engine, families)
        self._lora_info(registry)
        return registry

    def _gauges(self, engine: Engine, families: _Families) -> None:
        fakes, options, rank = self._fakes, engine.options, str(engine.rank)
        labels = {"model_name": options.names[0], "engine": rank}

        def gauge(name: str, text: str, value: float) -> None:
            families.child(Gauge, name, text, labels).set(value)

        waiting = fakes.value("waiting-requests", len(engine.waiting))
        running = fakes.value("running-requests", len(engine.running))
        usage = engine.cache.usage if options.enable_kvcache else 0.0
        gauge("num_requests_running", "Number of requests in model execution batches.", running)
        gauge("num_requests_waiting", "Number of requests waiting to be processed.", waiting)
        gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", fakes.value("kv-cache-usage", usage))
        info = {
            "block_size": str(options.block_size),
            "cache_dtype": "auto",
            "enable_prefix_caching": str(options.enable_kvcache),
            "engine": rank,
            "num_cpu_blocks": str(options.kv_cpu_cache_size or None),
            "num_gpu_blocks": str(options.kv_cache_size),
        }
        families.child(Gauge, "cache_config_info", "Information of the LLMEngine CacheConfig", info).set(1)

    def _lora_info(self, registry: CollectorRegistry) -> None:
        options = self._engines[0].options
        if not options.lora_modules:
            return
        running, waiting = self._fakes.loras(
            dict.fromkeys(name for engine in self._engines for name in engine.running_loras),
            dict.fromkeys(name for engine in self._engines for name in engine.waiting_loras),
        )
        labels = {
            "max_lora": str(options.max_loras),
            "running_lora_adapters": ",".join(running),
            "waiting_lora_adapters": ",".join(waiting),
        }
        family = Gauge("vllm:lora_requests_info", "Running stats on lora requests.", list(labels), registry=registry)
        family.labels(**labels).set(time.time())
