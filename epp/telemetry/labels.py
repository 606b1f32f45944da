"""Bounds on label values that clients choose.

A time series lives until the process ends, so a client that invents model names would grow the memory without limit.
Model names and fairness ids are therefore admitted up to a number of distinct values; later ones count as `other`.
"""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
"""What every value beyond the bound is counted as."""

MAX_VALUES = 1000
"""Distinct values per kind of label, as llm-d-router has it."""

_MAX_LENGTH = 256  # a model name may be as long as the body; no dashboard shows more

# Labels of one kind share one bound: a model name is the same name as a target.
LIMITED = {
    "model_name": "model",
    "target_model_name": "model",
    "target_model": "model",
    "fairness_id": "fairness",
}
"""Label names that are bounded, and their kind."""


class LabelLimiter:
    """Admits the first `limit` distinct values; `pin`ned ones always pass and do not count."""

    __slots__ = ("_limit", "_pinned", "_seen", "overflowed")

    def __init__(self, limit: int = MAX_VALUES) -> None:
        self._limit = limit
        self._seen: set[str] = set()
        self._pinned: set[str] = set()
        self.overflowed = 0

    def __call__(self, value: str) -> str:
        """The value itself, or `other`. Over-long values and those that are not Unicode text are `other` too, and so is
        what a plugin set that is no text at all."""
        if value in self._seen or value in self._pinned:
            return value
        if (
            not isinstance(value, str)
            or len(self._seen) >= self._limit
            or len(value) > _MAX_LENGTH
            or not encodable(value)
        ):
            self.overflowed += 1
            return OTHER
        self._seen.add(value)
        return value

    def __len__(self) -> int:
        return len(self._seen)

    def pin(self, values: Iterable[str]) -> None:
        """Names from the configuration: a flood of invented names must not displace them."""
        for value in values:
            if len(value) <= _MAX_LENGTH and encodable(value):
                self._pinned.add(value)
                self._seen.discard(value)


def encodable(value: str) -> bool:
    """False for text with lone surrogates: it would make the whole page impossible to write."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
