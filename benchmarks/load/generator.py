"""Builds and runs `extproc_load.cc`, which plays Envoy towards a picker and accounts the picker's CPU time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.debian_packages import MissingToolError

SOURCE = Path(__file__).with_name("extproc_load.cc")
BINARY = Path(__file__).parents[2] / "out" / "extproc-load"
PACKAGES = ("g++", "libnghttp2-dev", "libssl-dev")


class LoadError(RuntimeError):
    """A generator of load ended without a result (nobody answered, or not until the end), or was refused."""


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
    # Beside, then renamed: another run may be starting the old one.
    fresh = BINARY.with_name(f"{BINARY.name}.{os.getpid()}")
    command = [compiler, "-O2", "-std=c++17", "-o", str(fresh), str(SOURCE), *libraries]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise MissingToolError(f"the load generator does not compile (install {' '.join(PACKAGES)}):\n{result.stderr}")
    fresh.replace(BINARY)
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
    """One measurement. `streams` in flight (closed loop), or `rate` streams/s; bytes; `chunks` 0: no response body.

    `ids`: a prompt of so many token ids in place of `body` bytes. `token_ms`: time between response chunks, 0: the next
    as soon as the last was echoed. `once`: end after that many streams. `reset`: share of the streams that are reset on
    their way. `disconnect`: connections dropped per second.
    """

    body: int = 4096
    chunks: int = 100
    streams: int = 16
    connections: int = 2
    rate: float = 0.0
    token_ms: float = 0.0
    seconds: float = 3.0
    warm_up: float = 0.7
    tls: bool = False
    once: int = 0
    reset: float = 0.0
    disconnect: float = 0.0
    ids: int = 0

    def arguments(self) -> list[str]:
        """The generator's command line without port and process."""
        words = ["--conns", self.connections, "--body", self.body, "-n", self.chunks]
        words += ["--rate", self.rate] if self.rate else ["-k", self.streams]
        words += ["--tokms", self.token_ms] if self.token_ms else []
        words += ["--ids", self.ids] if self.ids else []
        words += ["--once", self.once] if self.once else []
        words += ["--reset", self.reset] if self.reset else []
        words += ["--disconnect", self.disconnect] if self.disconnect else []
        words += ["--warm", self.warm_up, "--dur", self.seconds]
        return [str(word) for word in words] + (["--tls"] if self.tls else [])

    def __str__(self) -> str:
        return " ".join([BINARY.name, *self.arguments()])


async def measure(load: Load, port: int, pid: int) -> dict[str, Any]:
    """Run the generator against the picker with process id `pid`; the generator's own JSON (times in microseconds).

    Errors that the generator saw (wrong replies, streams that ended early) are in `errs`. Raises `LoadError`.
    """
    binary = await asyncio.to_thread(build)
    command = [str(binary), "--port", str(port), "--pid", str(pid), *load.arguments()]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        out, error = await asyncio.wait_for(process.communicate(), load.seconds + load.warm_up + 60)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode not in (0, 4) or not out:
        raise LoadError(f"{' '.join(command)}: exit {process.returncode}\n{error.decode(errors='replace')}")
    figures: dict[str, Any] = json.loads(out)
    if figures["errs"]:
        figures["messages"] = error.decode(errors="replace").splitlines()
    return figures
