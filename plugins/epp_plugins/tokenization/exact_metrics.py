"""What exact tokenization tells about itself."""

from __future__ import annotations

from typing import Any

from epp_plugins.tokenization.tokenized import Reason

_LABELS = ("plugin_name", "plugin_type")
_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 30]
SOURCES = ("request", "cache", "backend", "estimate")


class ExactMetrics:
    """The children of one instance, looked up once. `registry` None: nothing is told."""

    def __init__(self, registry: Any, name: str, kind: str) -> None:
        self._on = registry is not None
        if not self._on:
            return
        values = (name, kind)
        prompts = registry.counter(
            "tokenizer_prompts_total", "Requests by where their token ids came from.", (*_LABELS, "source")
        )
        errors = registry.counter(
            "tokenizer_errors_total", "Requests without exact token ids, by reason.", (*_LABELS, "reason")
        )
        self._prompts = {source: prompts.labels(*values, source) for source in SOURCES}
        self._errors = {reason: errors.labels(*values, reason.value) for reason in Reason}
        self._degraded = registry.gauge(
            "tokenizer_degraded", "1 while requests get estimated token ids because the tokenizer fails.", _LABELS
        ).labels(*values)
        self._bytes = registry.gauge(
            "tokenizer_cache_bytes", "Memory of the tokenized requests that are kept.", _LABELS
        ).labels(*values)
        self._pending = registry.gauge(
            "tokenizer_pending_requests", "Requests that are being tokenized.", _LABELS
        ).labels(*values)
        self._duration = registry.histogram(
            "tokenizer_duration_seconds",
            "Time of the backend, also when the request did not wait for it.",
            _SECONDS,
            _LABELS,
        ).labels(*values)

    def prompt(self, source: str) -> None:
        """One request, by where its ids came from."""
        if self._on:
            self._prompts[source].inc()

    def error(self, reason: Reason) -> None:
        """One request without exact ids."""
        if self._on:
            self._errors[reason].inc()

    def degraded(self, now: bool) -> None:
        """Whether the tokenizer fails."""
        if self._on:
            self._degraded.set(int(now))

    def held(self, cached: int, pending: int) -> None:
        """Bytes of kept results, requests under way."""
        if self._on:
            self._bytes.set(cached)
            self._pending.set(pending)

    def took(self, seconds: float) -> None:
        """Time of one call of the backend."""
        if self._on:
            self._duration.observe(seconds)
