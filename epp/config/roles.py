"""What a plugin can be in a configuration. Which type has which roles is told by whoever knows the classes."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Role(StrEnum):
    """An extension point, in the order of a request's way."""

    PARSER = "parser"
    PRODUCER = "producer"
    ADMITTER = "admitter"
    FILTER = "filter"
    SCORER = "scorer"
    PICKER = "picker"
    PROFILE_HANDLER = "profile handler"
    DECIDER = "decider"
    SATURATION_DETECTOR = "saturation detector"
    DATA_SOURCE = "data source"
    ENDPOINT_SOURCE = "endpoint source"
    OBJECT_SOURCE = "object source"
    EXTRACTOR = "extractor"
    ENDPOINT_EXTRACTOR = "endpoint extractor"
    OBJECT_EXTRACTOR = "object extractor"
    DISCOVERY = "discovery"
    HOOKS = "request hooks"


READERS = {
    Role.DATA_SOURCE: Role.EXTRACTOR,
    Role.ENDPOINT_SOURCE: Role.ENDPOINT_EXTRACTOR,
    Role.OBJECT_SOURCE: Role.OBJECT_EXTRACTOR,
}
"""Kinds of sources, and who reads what they tell."""

Roles = Callable[[str], frozenset[Role]]
"""The roles of a plugin type; an unknown type has none."""
