"""What extractors store per endpoint besides numbers, read with `endpoints.attribute(LORA)`."""

from __future__ import annotations

from dataclasses import dataclass

LORA = "lora"
"""Attribute with the `LoraInfo` of a server that serves LoRA adapters."""

MODELS = "models"
"""Attribute with a tuple of `ModelInfo`, in the server's order."""


@dataclass(frozen=True, slots=True)
class LoraInfo:
    """LoRA adapters of one server at the last scrape.

    `active` adapters have running requests, `waiting` ones have queued requests; `max_active` is how many the server
    can run at once, 0 when it does not tell.
    """

    active: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    max_active: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of a server's `/v1/models`. `parent` is the base model of an adapter, empty for a base model."""

    id: str
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """Where a server is, from the tightest place to the widest; empty: not told.

    Attribute `str(DataKey(TOPOLOGY, <name of the extractor>))`.
    """

    hostname: str = ""
    rack: str = ""
    zone: str = ""
    region: str = ""
