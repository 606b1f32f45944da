"""Durations as Go writes them: `60s`, `1h30m`, `250ms`, `1.5s`, `0`."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "μs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_LARGEST = Decimal(2**63 - 1) * _UNITS["ns"]


class Duration(float):
    """Seconds. Prints as Go would accept it."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Duration:
        """From a string such as `1m30s`. A bare `0` needs no unit, any other number does. Raises ValueError."""
        if isinstance(text, int | float) and not isinstance(text, bool) and text == 0:
            return cls(0.0)
        if not isinstance(text, str):
            raise ValueError(f"expected a duration such as `60s` or `250ms`, got {text!r}")
        body = text.strip()
        sign = -1 if body.startswith("-") else 1
        body = body[1:] if body[:1] in ("+", "-") else body
        if body == "0":
            return cls(0.0)
        total, position = Decimal(0), 0
        while position < len(body):
            part = _PART.match(body, position)
            if part is None:
                break
            total += Decimal(part[1]) * _UNITS[part[2]]
            position = part.end()
        if position == 0 or position < len(body):
            raise ValueError(f"expected a duration such as `60s` or `250ms`, got {text!r}")
        if total > _LARGEST:
            raise ValueError(f"the duration {text!r} is longer than the 292 years that can be told")
        return cls(float(sign * total))

    def __str__(self) -> str:
        nanoseconds = round(float(self) * 1e9)
        if not nanoseconds:
            return "0s"
        for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
            if nanoseconds % size == 0:
                return f"{nanoseconds // size}{unit}"
        return f"{nanoseconds}ns"
