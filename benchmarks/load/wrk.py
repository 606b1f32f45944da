"""HTTP clients that cost little: wrk, which asks a gateway from so many connections as fast as it is answered.

What clients and servers leave in the processor's caches is the same for every picker, and more than a picker has there:
clients in Python double what a request costs it (`http_load` serves for rates, where they wait most of the time).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.debian_packages import libraries, program
from benchmarks.load.generator import LoadError

SCRIPT = Path(__file__).with_name("chat.lua")
_PACKAGE = "wrk"


@dataclass(frozen=True, slots=True)
class Answered:
    """Requests that were answered with 200, and their milliseconds to the end of the answer."""

    requests: int
    p50: float
    p99: float


async def ask(url: str, *, streams: int, seconds: float, first: int) -> Answered:
    """Ask from `streams` connections for `seconds` (at least 1, whole ones); prompts are numbered from `first` on.

    Raises `LoadError`, and `MissingToolError` when there is no wrk.
    """
    tool = program(_PACKAGE, names=("wrk",), variable="EPP_WRK")
    amount = ("--threads", "1", "--connections", str(streams), "--duration", f"{max(1, round(seconds))}s")
    process = await asyncio.create_subprocess_exec(
        str(tool),
        *(*amount, "--timeout", "30s", "--script", str(SCRIPT), url, "--", str(first)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=libraries(_PACKAGE),
    )
    said, _ = await process.communicate()
    lines = said.decode(errors="replace").strip().splitlines()
    try:
        seen = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise LoadError(f"wrk ended without a result:\n{chr(10).join(lines)[-2000:]}") from None
    if seen["refused"] or seen["broken"] or not seen["requests"]:
        raise LoadError(f"of {seen['requests']} requests {seen['refused']} were refused and {seen['broken']} broke off")
    return Answered(seen["requests"], seen["p50"], seen["p99"])
