"""What tests of tokenizers begin with."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epp.api import EndpointTable, InferenceRequest, Payload, PluginContext
from epp.telemetry.metrics import Registry


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def data() -> Path:
    """A small model's tokenizer, its configuration and its chat template."""
    return Path(__file__).parents[2] / "data" / "tokenization"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def context(clock: Clock, registry: Registry) -> PluginContext:
    def find(name: str) -> Any:
        raise LookupError(name)

    return PluginContext(
        "tokens", clock, random.Random(0), logging.getLogger("tokens"), EndpointTable(), find, metrics=registry
    )


@pytest.fixture
def made_request() -> Callable[..., InferenceRequest]:
    """A request of a kind with a body; the payload has no text of its own."""

    def make(kind: str, body: bytes, payload: Payload | None = None) -> InferenceRequest:
        return InferenceRequest("r", {}, "/", body, payload or Payload(kind), 0.0)

    return make
