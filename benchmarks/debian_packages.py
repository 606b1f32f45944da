"""Programs of Debian packages, without installing them: for tools that no Python package brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_OUT = Path(__file__).parents[1] / "out"


class MissingToolError(RuntimeError):
    """A program is missing and cannot be fetched; the message says what to install."""


def program(package: str, *, names: Sequence[str], variable: str) -> Path:
    """The program that the environment's `variable` names, or one of `names` in PATH, else the package's.

    A package is unpacked into out/, with what it depends on; `libraries` lets its program find them.
    """
    named = os.environ.get(variable)
    if named:
        if not os.access(named, os.X_OK):
            raise MissingToolError(f"{variable} names {named}, which cannot be run")
        return Path(named)
    for name in names:
        found = shutil.which(name)
        if found:
            return Path(found)
    kept = _OUT / package
    if not kept.exists():
        _fetch(package, names[0], kept, f"{package} is missing: install it, or name it in {variable}")
    return kept / "usr/bin" / names[0]


def libraries(package: str) -> dict[str, str]:
    """The environment in which a program from out/ finds the libraries that came with it."""
    kept = _OUT / package
    if not kept.exists():
        return dict(os.environ)
    folders = sorted({str(path.parent) for path in kept.glob("usr/lib/**/*.so.*")})
    return {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])}


def _fetch(package: str, name: str, kept: Path, wanted: str) -> None:
    fresh = kept.with_name(f"{kept.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    unpack(fresh, "install", "--download-only", "--yes", "--no-install-recommends", package, wanted=wanted)
    if not (fresh / "usr/bin" / name).exists():
        raise MissingToolError(f"{wanted}; Debian's package has no /usr/bin/{name}")
    try:
        fresh.rename(kept)
    except OSError:  # another run was faster
        shutil.rmtree(fresh)


def unpack(folder: Path, *arguments: str, wanted: str) -> None:
    """Unpack into `folder` what `apt-get ARGUMENTS` downloads into its working folder.

    `wanted`: what an error says is missing. The lists of packages are updated when they are too old, or missing.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise MissingToolError(f"{wanted}, and there is no apt-get to fetch it with")
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "partial").mkdir()
        command = ("apt-get", "-qq", f"-oDir::Cache::archives={here}", "-oDebug::NoLocking=1", *arguments)
        if _run(here, *command) is not None:
            for each in (("apt-get", "update", "-qq"), command):
                error = _run(here, *each)
                if error is not None:
                    raise MissingToolError(f"{wanted}, and {' '.join(each)} failed: {error}")
        for package in here.glob("*.deb"):
            error = _run(here, "dpkg", "-x", str(package), str(folder))
            if error is not None:
                raise MissingToolError(f"{wanted}, and {package.name} cannot be unpacked: {error}")


def _run(folder: Path, *command: str) -> str | None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else None
