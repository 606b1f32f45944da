"""The processes of a benchmark: each is started, awaited, and stopped by its own id, whatever happens between."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.configuration import everything_on, text
from benchmarks.endpoints import addresses
from epp.demo.picker import PickerProcess, Served
from epp.demo.processes import end

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0


class StartError(RuntimeError):
    """A process ended, or said nothing, instead of getting ready; the message has what it wrote."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server of ext_proc to be measured."""

    name: str
    port: int
    pid: int
    tls: bool = False


@asynccontextmanager
async def child(
    *arguments: str, log: Path, lines: int = 1
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """`python ARGUMENTS` until the block ends, and the first `lines` lines that it printed: its ports."""
    command = [sys.executable, *arguments]
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors, cwd=ROOT
        )
    try:
        assert process.stdout is not None
        said = [(await asyncio.wait_for(process.stdout.readline(), START_SECONDS)).decode() for _ in range(lines)]
        if not all(said):
            raise StartError(f"{' '.join(command)} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        yield process, [line.strip() for line in said]
    finally:
        await end(process, 5.0)


@asynccontextmanager
async def baseline(folder: Path, *, tls: bool = False) -> AsyncIterator[Target]:
    """The unit: an echo picker on grpc.aio."""
    flags = ["--tls"] if tls else []
    module = ("-m", "benchmarks.baseline.grpc_aio_echo")
    async with child(*module, *flags, log=folder / "baseline.log") as (process, said):
        yield Target("grpc.aio", int(said[0]), process.pid, tls)


@asynccontextmanager
async def static_servers(folder: Path, count: int) -> AsyncIterator[list[Served]]:
    """`count` endpoints with a captured metrics page, in a process of their own."""
    async with child("-m", "benchmarks.endpoints", log=folder / "endpoints.log") as (_, said):
        yield [Served(address, int(said[0])) for address in addresses(count)]


@asynccontextmanager
async def simulated_servers(folder: Path, count: int, *flags: str) -> AsyncIterator[list[Served]]:
    """`count` simulated model servers, in a process of their own."""
    sim = ("-m", "epp", "sim", "--model", "m", "--port", "0", "--instances", str(count))
    async with child(*sim, *flags, log=folder / "simulated.log", lines=count) as (_, said):
        yield [Served("127.0.0.1", int(line.rpartition(":")[2])) for line in said]


@asynccontextmanager
async def picker(
    folder: Path, endpoints: Sequence[Served], *, config: str = "", flags: Sequence[str] = (), tls: bool = False
) -> AsyncIterator[PickerProcess]:
    """`epp serve` over these endpoints; `config` empty: the default one with in-flight accounting."""
    config = config or text(everything_on())
    # Nobody has to be told that it goes: no drain.
    async with PickerProcess(
        folder, endpoints, config=config, flags=(*flags, "--drain-timeout=0s"), tls=tls
    ) as process:
        await _listening(process.grpc_port)
        yield process


def target(name: str, process: PickerProcess) -> Target:
    """What a load generator needs to know of a picker."""
    return Target(name, process.grpc_port, process.pid, process.tls)


async def _listening(port: int) -> None:
    """Wait until a port takes connections: the metrics port is there before the others."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            if asyncio.get_running_loop().time() > deadline:
                raise StartError(f"nothing listens on port {port} after {START_SECONDS:.0f} s") from None
            await asyncio.sleep(0.05)
        else:
            writer.close()
            await writer.wait_closed()
            return
