"""Reported values that are made up: constants, or functions of time (`oscillate|ramp|rampreset|squarewave`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from epp_simulator.options import duration


class FakeMetrics:
    """`values` maps a key (`running-requests`, `waiting-requests`, `kv-cache-usage`, `loras`) to a number or to
    `shape:start:end:period`. Time counts from the first use."""

    def __init__(self, values: Mapping[str, Any], clock: Callable[[], float]) -> None:
        self.values = dict(values)
        self._clock = clock
        self._began = clock()

    def value(self, key: str, real: float) -> float:
        """The fake value when there is one, else the real one."""
        fake = self.values.get(key)
        if fake is None:
            return real
        if isinstance(fake, (int, float)):
            return float(fake)
        return self._wave(str(fake))

    def loras(self, running: Iterable[str], waiting: Iterable[str]) -> tuple[list[str], list[str]]:
        """Adapter names to report: `loras: [{running: "a,b", waiting: "c"}]`."""
        fake = self.values.get("loras")
        if not fake:
            return list(running), list(waiting)
        first = fake[0] if isinstance(fake, list) else fake
        return _names(first.get("running", "")), _names(first.get("waiting", ""))

    def _wave(self, text: str) -> float:
        shape, start_text, end_text, period_text = text.split(":")
        start, end, period = float(start_text), float(end_text), duration(period_text)
        phase = (self._clock() - self._began) / period
        if shape == "ramp":
            return start + (end - start) * min(1.0, phase)
        if shape == "rampreset":
            return start + (end - start) * (phase % 1.0)
        if shape == "squarewave":
            return start if phase % 1.0 < 0.5 else end
        if shape == "oscillate":
            return start + (end - start) * (1 - math.cos(2 * math.pi * phase)) / 2
        raise ValueError(f"fake metric {text!r}: use oscillate, ramp, rampreset or squarewave")


def _names(value: Any) -> list[str]:
    return list(value) if isinstance(value, list) else [name for name in str(value).split(",") if name]
