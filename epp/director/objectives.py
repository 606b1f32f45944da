"""Priorities by name, as operators declare them by InferenceObjective. Implements `epp.director.naming.Objectives`."""

from __future__ import annotations

from collections.abc import Mapping


class ObjectiveTable:
    """Replaced as a whole when something changes; asked once per request that names an objective."""

    def __init__(self) -> None:
        self._priorities: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._priorities)

    def replace(self, priorities: Mapping[str, int]) -> None:
        """All objectives there are: name -> priority, higher first, negative may be shed."""
        self._priorities = dict(priorities)

    def priority(self, name: str) -> int:
        """0 for a name that nobody declared."""
        return self._priorities.get(name, 0)
