"""YAML of files that are read while the picker serves: a few lines must not become more than memory holds.

Aliases cost nothing, they are the same object again. Merge keys (`<<`) copy, and copies of copies grow ninefold a line.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_MERGED = 100_000
"""Entries that merge keys may add in one file."""

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one reads a full file in 0.3 s instead of 3


class BoundedLoader(_Base):  # type: ignore[misc]
    """A safe loader. `yaml.YAMLError` also when merge keys add more than `MAX_MERGED` entries."""

    _merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        before = len(node.value)
        super().flatten_mapping(node)
        self._merged += max(len(node.value) - before, 0)
        if self._merged > MAX_MERGED:
            raise yaml.constructor.ConstructorError(
                None, None, f"merge keys add more than {MAX_MERGED} entries", node.start_mark
            )
