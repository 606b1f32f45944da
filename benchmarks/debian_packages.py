"""Programs of Debian packages, without installing them: for tools that no Python package brings."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path


class MissingToolError(RuntimeError):
    """A program is missing and cannot be fetched; the message says what to install."""


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
