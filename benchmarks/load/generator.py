"""Builds and runs `extproc_load.cc`, which plays Envoy towards a picker and accounts the picker's CPU time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("extproc_load.cc")
BINARY = Path(__file__).parents[2] / "out" / "extproc-load"
PACKAGES = ("g++", "libnghttp2-dev", "libssl-dev")


class MissingToolError(RuntimeError):
    """The generator cannot be built here."""


def build() -> Path:
    """Path of the generator, compiled if it is not there or older than its source."""
    if BINARY.exists() and BINARY.stat().st_mtime >= SOURCE.stat().st_mtime:
        return BINARY
    compiler = shutil.which("g++")
    libraries = ["-lnghttp2", "-lssl", "-lcrypto"]
    if compiler is None or not _compiles(compiler, libraries):
        _install()
        compiler = shutil.which("g++")
    if compiler is None:
        raise MissingToolError(f"no g++: install {' '.join(PACKAGES)}")
    BINARY.parent.mkdir(exist_ok=True)
    command = [compiler, "-O2", "-std=c++17", "-o", str(BINARY), str(SOURCE), *libraries]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise MissingToolError(f"the load generator does not compile (install {' '.join(PACKAGES)}):\n{result.stderr}")
    return BINARY


def _compiles(compiler: str, libraries: list[str]) -> bool:
    probe = "#include <nghttp2/nghttp2.h>\n#include <openssl/ssl.h>\nint main() { return 0; }\n"
    command = [compiler, "-x", "c++", "-", "-o", os.devnull, *libraries]
    return subprocess.run(command, input=probe, capture_output=True, text=True, check=False).returncode == 0


def _install() -> None:
    """Debian as root (a container, a build machine): fetch what is missing. Elsewhere: say what to install."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingToolError(f"the load generator needs {' '.join(PACKAGES)} (Debian names); install them and retry")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", *PACKAGES]):
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if result.returncode:
            raise MissingToolError(f"{' '.join(command)} failed:\n{result.stderr}")


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement. `streams` in flight (closed loop), or `rate` streams/s; bytes; `chunks` 0: no response body."""

    body: int = 4096
    chunks: int = 100
    streams: int = 16
    connections: int = 2
    rate: float = 0.0
    token_ms: float = 0.0
    seconds: float = 3.0
    warm_up: float = 0.7
    tls: bool = False


def measure(load: Load, port: int, pid: int) -> dict[str, Any]:
    """Run the generator against the picker with process id `pid`; the generator's own JSON."""
    command: list[str] = [str(build()), "--port", str(port), "--pid", str(pid), "--conns", str(load.connections)]
    command += ["--body", str(load.body), "-n", str(load.chunks), "--dur", str(load.seconds)]
    command += ["--warm", str(load.warm_up), "--tokms", str(load.token_ms)]
    command += ["--rate", str(load.rate)] if load.rate else ["-k", str(load.streams)]
    if load.tls:
        command.append("--tls")
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=load.seconds + 120)
    if result.returncode not in (0, 4) or not result.stdout:
        raise RuntimeError(f"{' '.join(command)}: exit {result.returncode}\n{result.stderr}")
    figures: dict[str, Any] = json.loads(result.stdout)
    return figures
