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
    SATURATION_DETECTOR = "saturation detector"
    DATA_SOURCE = "data source"
    EXTRACTOR = "extractor"
    DISCOVERY = "discovery"
    HOOKS = "request hooks"


Roles = Callable[[str], frozenset[Role]]
"""The roles of a plugin type; an unknown type has none."""
