"""Finds promtool, which checks Prometheus' rules; fetches it where it is missing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.debian_packages import unpack

KEPT = Path(__file__).parents[1] / "out/promtool"


def promtool() -> Path:
    """The one in PATH, else the one of Debian's package `prometheus`, unpacked into out/ without installing it."""
    found = shutil.which("promtool")
    if found:
        return Path(found)
    if not KEPT.exists():
        _fetch()
    return KEPT


def _fetch() -> None:
    wanted = "promtool is missing: install Prometheus, its rules are checked with it"
    with tempfile.TemporaryDirectory() as name:
        unpack(Path(name), "download", "prometheus", wanted=wanted)
        KEPT.parent.mkdir(exist_ok=True)
        # Beside, then renamed: another run may be starting it.
        fresh = KEPT.with_name(f"{KEPT.name}.{os.getpid()}")
        shutil.copy(Path(name) / "usr/bin/promtool", fresh)
        fresh.replace(KEPT)
