"""Kubernetes quantities: `10Gi`, `1k`, `500M`, `1e6`, plain integers. Only whole results make sense here."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}
_SHAPE = re.compile(r"([+-]?(?:\d{1,40}\.?\d{0,40}|\.\d{1,40}))(?:[eE]([+-]?\d{1,3})|([numkMGTPE]i?|Ki)?)")
_LARGEST = 2**63 - 1


class Quantity(int):
    """A count or a number of bytes. Fractions are rounded up, as Kubernetes does."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Quantity:
        """From a string such as `10Gi`, or a number. Raises ValueError."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        match = _SHAPE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"expected a quantity such as `10Gi`, `1k` or 500, got {value!r}")
        factor = Decimal(10) ** int(match[2]) if match[2] else _SUFFIXES.get(match[3] or "")
        if factor is None:
            raise ValueError(f"the quantity {value!r} has an unknown suffix; known: k M G T P E and Ki Mi Gi Ti Pi Ei")
        number = int((Decimal(match[1]) * factor).to_integral_value(rounding=ROUND_CEILING))
        if abs(number) > _LARGEST:
            raise ValueError(f"the quantity {value!r} does not fit into 64 bits")
        return cls(number)
