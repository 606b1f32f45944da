"""How many requests were served by one, two or three servers, and how often that was not what was wanted."""

from __future__ import annotations

from typing import Any

import epp

DECODE_ONLY = "decode-only"
PREFILL_DECODE = "prefill-decode"
ENCODE_DECODE = "encode-decode"
ENCODE_PREFILL_DECODE = "encode-prefill-decode"

NO_PREFILL_ENDPOINT = "no-prefill-endpoint"
NO_ENCODE_ENDPOINT = "no-encode-endpoint"
SAME_ENDPOINT = "same-endpoint"
DECIDER_FAILED = "decider-failed"
NO_TOKENS = "no-tokens"
NO_PREFIX_INFO = "no-prefix-info"


def decision_type(*, encode: bool, prefill: bool) -> str:
    """llm-d-router's names of the ways."""
    if encode:
        return ENCODE_PREFILL_DECODE if prefill else ENCODE_DECODE
    return PREFILL_DECODE if prefill else DECODE_ONLY


class Decisions:
    """`disagg_decision_total`: one per scheduled request. The name it had before is shown from the same numbers."""

    def __init__(self, plugin: epp.Plugin[Any]) -> None:
        self._plugin = (plugin.name, plugin.type)
        metrics = plugin.context.metrics
        self._family = (
            metrics.counter(
                "disagg_decision_total",
                "Disaggregation decisions, by the stages that have a server of their own.",
                ("plugin_name", "plugin_type", "model_name", "decision_type"),
            )
            if metrics is not None
            else None
        )

    def count(self, model: str, decision: str) -> None:
        """A request of this target model went that way."""
        if self._family is not None:
            self._family.labels(*self._plugin, model or "unknown", decision).inc()


class Fallbacks:
    """`disagg_fallback_total`: a stage went another way than the configuration asks for, by reason."""

    def __init__(self, plugin: epp.Plugin[Any]) -> None:
        self._plugin = (plugin.name, plugin.type)
        metrics = plugin.context.metrics
        self._family = (
            metrics.counter(
                "disagg_fallback_total",
                "Requests in which a stage was left to another server, or decided without data, by reason.",
                ("plugin_name", "plugin_type", "reason"),
            )
            if metrics is not None
            else None
        )

    def count(self, reason: str) -> None:
        """One request."""
        if self._family is not None:
            self._family.labels(*self._plugin, reason).inc()
