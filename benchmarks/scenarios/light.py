"""Through a real Envoy: every chunk past the picker (full duplex), or none of them (light).

Simulated servers answer at 10 ms a token. Listed is the CPU of the picker and of Envoy per request. Collecting
goes on meanwhile and goes by time: at a low rate it is a good part of a request's share, so the picker that collects
almost nothing shows what the requests cost alone. A picker that always answers the same on the same transport shows
what is left of that when nothing is decided: wake-ups, sockets and frames.

A rate that this machine cannot keep up with is no rate: answers come seconds late, arrivals in bunches, and bunches are
cheap. Where the first byte takes longer than `KEPT_UP_MS`, the row stays and says so, but no verdict comes from it.
With so many streams at a time, as in `headline`, there is no rate to keep up with: at most these wait.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import ONLY_PICKS, Bench, Figures, row
from benchmarks.figures import Outcome, Table, bound, columns, middle
from benchmarks.processes import child, picker, simulated_servers
from benchmarks.procfs import cpu_seconds
from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import Served
from epp.demo.ports import free_ports

SUMMARY = "through a real Envoy: CPU of picker and Envoy, full duplex and light, at three rates and 16 at a time"
SERVERS = 8
MOST_US = 700.0
KEPT_UP_MS = 100.0


@dataclass(frozen=True, slots=True)
class Load:
    """`rate`: requests/s; 0: `streams` at a time. `tokens` per answer."""

    tokens: int
    rate: float = 0.0
    streams: int = 0

    @property
    def name(self) -> str:
        """For the table and the verdicts."""
        return f"{self.rate:g}/s" if self.rate else f"{self.streams} streams"

    @property
    def arguments(self) -> list[str]:
        """Of the clients."""
        amount = ["--rate", str(self.rate)] if self.rate else ["--streams", str(self.streams)]
        return [*amount, "--tokens", str(self.tokens)]


# At 40 a second nearly every message wakes the picker by itself, with cold caches, and its timers count; in light mode
# the tokens do not pass it, so that short answers leave the machine room for more.
SLOW = Load(100, rate=40.0)
BRISK = Load(5, rate=200.0)
BUSY = Load(2, rate=500.0)
CLOSED = Load(2, streams=16)
CONSTANT = "light, constant answer"

COLUMNS = columns(
    ("mode", "mode"),
    ("load", "load"),
    ("tls", "TLS"),
    ("collecting", "collecting"),
    ("requests", "requests"),
    ("picker", "picker us/request"),
    ("envoy", "Envoy us/request"),
    ("ttfb50", "first byte p50 ms", 1),
    ("ttfb99", "first byte p99 ms", 1),
    ("kept_up", "kept up"),
)
CASES = (
    ("standalone", False, False, SLOW),
    (CONSTANT, False, False, SLOW),
    ("light", False, False, SLOW),
    ("light", False, True, SLOW),
    (CONSTANT, False, False, BRISK),
    ("light", False, False, BRISK),
    ("light", False, True, BRISK),
    (CONSTANT, False, False, BUSY),
    ("light", False, True, BUSY),
    (CONSTANT, False, False, CLOSED),
    ("light", False, False, CLOSED),
    ("light", False, True, CLOSED),
    ("standalone", True, False, SLOW),
    ("light", True, False, SLOW),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """All gateways are alive; they are measured in turn."""
    seconds, warm_up = bench.pick(smoke=(0.5, 0.1), quick=(4.0, 1.0), full=(8.0, 2.0))
    table = Table(f"medians of {bench.rounds} runs", COLUMNS, [])
    outcome.tables.append(table)
    latency = ("--inter-token-latency", "10ms", "--time-to-first-token", "5ms")
    limits = ("--max-model-len", "200000", "--max-num-seqs", "1000")
    async with simulated_servers(bench.subfolder(), SERVERS, *latency, *limits) as servers:
        for flavour, tls, collecting, load in bench.pick(smoke=CASES[4:6], quick=CASES[:6], full=CASES):
            runs: list[Figures] = []
            arguments = [*load.arguments, "--seconds", str(seconds), "--warm-up", str(warm_up)]
            command = " ".join(["benchmarks.load.http_load", *arguments])
            async with _gateway(bench, servers, flavour, tls=tls, collecting=collecting) as (pid, envoy):
                for number in range(bench.rounds):
                    bench.say(f"{flavour}{', TLS' if tls else ''}, round {number + 1} of {bench.rounds}")
                    runs.append(await _measure(bench, pid, envoy, arguments))
            cells = {key: middle(runs, key) for key in ("picker", "envoy", "ttfb50", "ttfb99")}
            kept_up = cells["ttfb50"] <= KEPT_UP_MS
            table.rows.append(
                row(
                    command,
                    mode="full duplex" if flavour == "standalone" else flavour,
                    load=load.name,
                    tls="on" if tls else "off",
                    collecting="on" if collecting else "off",
                    requests=sum(run["requests"] for run in runs),
                    kept_up="yes" if kept_up else "no",
                    **cells,
                )
            )
            if flavour == "light" and not tls and kept_up:
                name = f"light mode, {load.name}" + (", collecting included" if collecting else "")
                outcome.verdicts.append(bound(name, cells["picker"], "us/request", MOST_US, command))


@asynccontextmanager
async def _gateway(
    bench: Bench, servers: list[Served], flavour: str, *, tls: bool, collecting: bool
) -> AsyncIterator[tuple[int, Envoy]]:
    """The process id of the picker, and the Envoy before it."""
    folder = bench.subfolder()
    async with AsyncExitStack() as stack:
        if flavour == CONSTANT:
            names = [f"{server.host}:{server.port}" for server in servers]
            module = ("-m", "benchmarks.baseline.constant", *names)
            process, said = await stack.enter_async_context(child(*module, log=folder / "constant.log"))
            port, pid = int(said[0]), process.pid
        else:
            flags = () if collecting else ONLY_PICKS
            ours = await stack.enter_async_context(picker(folder, servers, flags=flags, tls=tls))
            port, pid = ours.grpc_port, ours.pid
        listen, admin = free_ports(2)
        known = "light" if flavour == CONSTANT else flavour
        yield pid, await stack.enter_async_context(Envoy(Gateway(known, listen, admin, port, picker_tls=tls), folder))


async def _measure(bench: Bench, pid: int, envoy: Envoy, arguments: list[str]) -> Figures:
    """One run of the clients. RuntimeError when a request failed."""
    client = ("-m", "benchmarks.load.http_load", "--url", envoy.url, *arguments)
    async with child(*client, log=bench.folder / "http_load.log") as (clients, _):
        before = cpu_seconds(pid), cpu_seconds(envoy.pid)
        assert clients.stdout is not None
        line = await asyncio.wait_for(clients.stdout.readline(), 120)
        after = cpu_seconds(pid), cpu_seconds(envoy.pid)
    if not line:
        raise RuntimeError(f"the clients broke off:\n{(bench.folder / 'http_load.log').read_text()[-2000:]}")
    seen: dict[str, Any] = json.loads(line)
    if seen["errors"] or not seen["requests"]:
        raise RuntimeError(f"{seen['errors']} of the requests through Envoy failed, first: {seen['first_error']}")
    count = seen["requests"]
    return seen | {"picker": (after[0] - before[0]) / count * 1e6, "envoy": (after[1] - before[1]) / count * 1e6}
