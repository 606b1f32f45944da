"""`epp sim`: simulated model servers, for demos, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from epp_simulator import main


def run(argv: Sequence[str]) -> int:
    """Serve until a signal; 2 for bad options."""
    return main.run(argv)
