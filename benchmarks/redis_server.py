"""A real redis-server on loopback, in a process of its own: found on the machine, or fetched from Debian."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from benchmarks.debian_packages import MissingToolError, libraries, program
from epp.demo.ports import free_ports
from epp.demo.processes import end

PACKAGE = "redis-server"
START_SECONDS = 30.0


def redis_server() -> Path:
    """The one that `EPP_REDIS_SERVER` names, or in PATH, else Debian's, unpacked into out/ without installing it."""
    return program(PACKAGE, names=("redis-server", "valkey-server"), variable="EPP_REDIS_SERVER")


class RedisServer:
    """Started and stopped with the block; the same port each time. Nothing is written to disk.

    `certificate`: files of a certificate, its key and its authority, for TLS. `flags`: more of redis-server's.
    """

    def __init__(
        self, folder: Path, *, certificate: tuple[Path, Path, Path] | None = None, flags: Sequence[str] = ()
    ) -> None:
        (self.port,) = free_ports(1)
        self.process: asyncio.subprocess.Process | None = None
        self._folder = folder
        self._tls = certificate is not None
        ports = ["--port", str(self.port)]
        if certificate is not None:
            names = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
            files = [text for name, path in zip(names, certificate, strict=True) for text in (name, str(path))]
            ports = ["--port", "0", "--tls-port", str(self.port), *files, "--tls-auth-clients", "no"]
        self._flags = [*ports, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *flags]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, empty, and wait until it listens."""
        program = redis_server()
        self.process = await asyncio.create_subprocess_exec(
            str(program),
            *self._flags,
            "--dir",
            str(self._folder),
            stdout=asyncio.subprocess.DEVNULL,
            env=libraries(PACKAGE),
        )
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not self._listens():
            if self.process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise MissingToolError(f"{program} {' '.join(self._flags)} does not start")
            await asyncio.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, number: signal.Signals) -> None:
        """A signal: SIGSTOP makes it slow, SIGCONT well again."""
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """As the kernel does it when memory is short."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def __aenter__(self) -> RedisServer:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.process is not None:
            if self.process.returncode is None:
                self.process.send_signal(signal.SIGCONT)
            await end(self.process, 5.0)
