"""Finds promtool, which checks Prometheus' rules; fetches it where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

KEPT = Path(__file__).parents[1] / "out/promtool"


class MissingToolError(RuntimeError):
    """There is no promtool, and none can be fetched."""


def promtool() -> Path:
    """The one in PATH, else the one of Debian's package `prometheus`, unpacked into out/ without installing it."""
    found = shutil.which("promtool")
    if found:
        return Path(found)
    if not KEPT.exists():
        _fetch()
    return KEPT


def _fetch() -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise MissingToolError("promtool is missing: install Prometheus, its rules are checked with it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if _run(folder, "apt-get", "download", "-qq", "prometheus") is not None:
            # The lists of packages are older than the packages, or missing.
            for command in (("apt-get", "update", "-qq"), ("apt-get", "download", "-qq", "prometheus")):
                error = _run(folder, *command)
                if error is not None:
                    raise MissingToolError(f"promtool is missing, and {' '.join(command)} failed: {error}")
        error = _run(folder, "dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder / "unpacked"))
        if error is not None:
            raise MissingToolError(f"promtool is missing, and its package cannot be unpacked: {error}")
        KEPT.parent.mkdir(exist_ok=True)
        # Beside, then renamed: another run may be starting it.
        fresh = KEPT.with_name(f"{KEPT.name}.{os.getpid()}")
        shutil.copy(folder / "unpacked/usr/bin/promtool", fresh)
        fresh.replace(KEPT)


def _run(folder: Path, *command: str) -> str | None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else None
