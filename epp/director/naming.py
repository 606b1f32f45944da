"""Whom a request is from and which model it is really for: header aliases, objectives, rewrites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

FAIRNESS_ID = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
OBJECTIVE = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
MODEL_REWRITE = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
NAMING_HEADERS = frozenset((*FAIRNESS_ID, *OBJECTIVE, *MODEL_REWRITE))


def header(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The first non-empty value among alias headers, "" when there is none."""
    for name in names:
        value = headers.get(name)
        if value:
            return value
    return ""


class Objectives(Protocol):
    """Priorities by InferenceObjective name."""

    def priority(self, name: str) -> int:
        """0 for an unknown name."""


class Rewrites(Protocol):
    """Model names that the operator maps to others."""

    def target(self, model: str) -> str | None:
        """The model to ask the server for; None: no rule applies."""


class NoObjectives:
    """Every request has priority 0."""

    def priority(self, name: str) -> int:
        return 0


class NoRewrites:
    """No rule applies to any model."""

    def target(self, model: str) -> str | None:
        return None


def wants_cached_only(headers: Mapping[str, str]) -> bool:
    """`prefer: if-available` (RFC 7240 token list): answer only from a server that holds part of the prompt."""
    prefer = headers.get("prefer")
    return prefer is not None and any(token.strip().lower() == "if-available" for token in prefer.split(","))
