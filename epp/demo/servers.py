"""Simulated model servers in a process of their own, so that the picker's loop stays its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from epp.demo.picker import Served
from epp.demo.processes import end

_HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def simulated(
    roles: Sequence[str], first: int, folder: Path, *, models: Sequence[str], flags: Sequence[str], ranks: bool
) -> AsyncIterator[list[Served]]:
    """One server per role (empty: none), on ports from `first` on. `models`: names they answer to.

    RuntimeError with the log when they do not start.
    """
    command = [sys.executable, "-m", "epp", "sim", "--model", models[0], "--served-model-name", *models]
    command += ["--port", str(first), "--instances", str(len(roles)), "--pd-sidecar"]
    command += ["--enable-kvcache", "--kv-cache-size", "4096", "--max-model-len", "8192"]
    command += ["--prefill-overhead", "10ms", "--prefill-time-per-token", "250us", "--inter-token-latency", "5ms"]
    path = folder / "simulator.log"
    with path.open("wb") as log:
        # A session of its own: Ctrl-C is for the demo alone, which ends the servers when nobody needs them any more.
        process = await asyncio.create_subprocess_exec(*command, *flags, stdout=log, stderr=log, start_new_session=True)
    try:
        await _listening(first + len(roles) - 1, process, path)
        yield [
            Served(
                _HOST,
                first + number,
                name=f"{role or 'server'}-{number + 1}",
                labels={"llm-d.ai/role": role} if role else {},
                rank=number if ranks else 0,
            )
            for number, role in enumerate(roles)
        ]
    finally:
        await end(process, 5.0)


async def _listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    for _ in range(600):
        if process.returncode is not None:
            raise RuntimeError(f"the simulated servers did not start:\n{log.read_text()}")
        try:
            _, writer = await asyncio.open_connection(_HOST, port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("the simulated servers did not start within 30 s")
