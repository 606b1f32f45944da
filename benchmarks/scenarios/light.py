"""Through a real Envoy: every chunk past the picker (full duplex), or none of them (light).

Listed is the CPU of the picker and of Envoy per request. The bound is for the loads of `headline`: 4 KB prompts, 100
chunks, 16 and 128 streams at a time, 10 endpoints, everything on. wrk asks as fast as it is answered, the servers
answer at once, and both leave the processor to Envoy and the picker.

At a rate the picker has nothing to do most of the time, and a request finds its caches taken. What it costs there is
shown, without a bound. Collecting goes on meanwhile and goes by time: at a low rate it is a good part of a request's
share, so the picker that collects almost nothing shows what the requests cost alone. A picker that always answers the
same on the same transport shows what is left of that when nothing is decided: wake-ups, sockets and frames. Simulated
servers answer at 10 ms a token. A rate that this machine cannot keep up with is no rate: answers come seconds late,
arrivals in bunches, and bunches are cheap. Where the first byte takes longer than `KEPT_UP_MS`, the row says so.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.bench import ONLY_PICKS, Bench, Figures, row
from benchmarks.figures import Outcome, Table, bound, columns, middle
from benchmarks.load import wrk
from benchmarks.processes import child, picker, simulated_servers, static_servers
from benchmarks.procfs import cpu_seconds
from benchmarks.scenarios.headline import ENDPOINTS
from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import Served
from epp.demo.ports import free_ports

SUMMARY = "through a real Envoy: CPU of picker and Envoy, full duplex and light, 16 and 128 streams, three rates"
MOST_US = 700.0
KEPT_UP_MS = 100.0
REQUESTS_OF_A_RUN = 10_000_000  # prompts are numbered: none comes twice


@dataclass(frozen=True, slots=True)
class Load:
    """`rate`: requests/s, with `tokens` per answer; 0: `streams` at a time."""

    tokens: int = 0
    rate: float = 0.0
    streams: int = 0

    @property
    def name(self) -> str:
        """For the table and the verdicts."""
        return f"{self.rate:g}/s" if self.rate else f"{self.streams} streams"

    @property
    def command(self) -> str:
        """What asks, for the report."""
        if self.rate:
            return f"benchmarks.load.http_load --rate {self.rate:g} --tokens {self.tokens}"
        return f"wrk --connections {self.streams}"


# At 40 a second nearly every message wakes the picker by itself, and its timers count; in light mode the tokens do not
# pass it, so that short answers leave the machine room for more.
SLOW = Load(100, rate=40.0)
BRISK = Load(5, rate=200.0)
BUSY = Load(2, rate=500.0)
FEW = Load(streams=16)
MANY = Load(streams=128)
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
    ("answer50", "answer p50 ms", 1),
    ("answer99", "answer p99 ms", 1),
    ("kept_up", "kept up"),
)
MEASURED = ("picker", "envoy", "ttfb50", "ttfb99", "answer50", "answer99")  # `http_load` sees first bytes, wrk the end
AT_A_TIME = (
    (CONSTANT, False, False, FEW),
    ("light", False, True, FEW),
    ("light", False, False, FEW),
    (CONSTANT, False, False, MANY),
    ("light", False, True, MANY),
    ("light", True, True, FEW),
)
AT_A_RATE = (
    (CONSTANT, False, False, BRISK),
    ("light", False, True, BRISK),
    ("light", False, False, BRISK),
    (CONSTANT, False, False, SLOW),
    ("light", False, False, SLOW),
    ("light", False, True, SLOW),
    (CONSTANT, False, False, BUSY),
    ("light", False, True, BUSY),
    ("light", True, False, SLOW),
    ("standalone", False, False, SLOW),
    ("standalone", True, False, SLOW),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """All servers are alive; gateways are measured one after the other."""
    seconds, warm_up = bench.pick(smoke=(0.5, 0.1), quick=(4.0, 1.0), full=(8.0, 2.0))
    table = Table(f"medians of {bench.rounds} runs", COLUMNS, [])
    outcome.tables.append(table)
    latency = ("--inter-token-latency", "10ms", "--time-to-first-token", "5ms")
    limits = ("--max-model-len", "200000", "--max-num-seqs", "1000")
    async with (
        simulated_servers(bench.subfolder(), ENDPOINTS, *latency, *limits) as simulated,
        static_servers(bench.subfolder(), ENDPOINTS) as static,
    ):
        cases = bench.pick(smoke=AT_A_RATE[:2], quick=AT_A_TIME, full=AT_A_TIME + AT_A_RATE)
        for flavour, tls, collecting, load in cases:
            runs: list[Figures] = []
            servers = simulated if load.rate else static
            async with _gateway(bench, servers, flavour, tls=tls, collecting=collecting) as gateway:
                for number in range(bench.rounds):
                    bench.say(f"{flavour}{', TLS' if tls else ''}, round {number + 1} of {bench.rounds}")
                    if load.rate:
                        runs.append(await _at_a_rate(bench, gateway, load, seconds, warm_up))
                    else:
                        runs.append(await _at_a_time(gateway, load, seconds, warm_up, number))
            cells = {key: middle(runs, key) if key in runs[0] else None for key in MEASURED}
            kept_up = not load.rate or middle(runs, "ttfb50") <= KEPT_UP_MS
            table.rows.append(
                row(
                    load.command,
                    mode="full duplex" if flavour == "standalone" else flavour,
                    load=load.name,
                    tls="on" if tls else "off",
                    collecting="on" if collecting else "off",
                    requests=sum(run["requests"] for run in runs),
                    kept_up="yes" if kept_up else "no",
                    **cells,
                )
            )
            if flavour == "light" and not load.rate:
                with_tls, all_but_off = ", TLS" if tls else "", "" if collecting else ", collecting all but off"
                name = f"light mode, {load.name}{with_tls}{all_but_off}"
                outcome.verdicts.append(bound(name, middle(runs, "picker"), "us/request", MOST_US, load.command))


class Cpu(NamedTuple):
    """Seconds since the start of the processes."""

    picker: float
    envoy: float


class _Gateway(NamedTuple):
    picker_pid: int
    envoy: Envoy

    def cpu_seconds(self) -> Cpu:
        return Cpu(cpu_seconds(self.picker_pid), cpu_seconds(self.envoy.pid))


@asynccontextmanager
async def _gateway(
    bench: Bench, servers: list[Served], flavour: str, *, tls: bool, collecting: bool
) -> AsyncIterator[_Gateway]:
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
        described = Gateway(known, listen, admin, port, picker_tls=tls)
        yield _Gateway(pid, await stack.enter_async_context(Envoy(described, folder)))


async def _at_a_rate(bench: Bench, gateway: _Gateway, load: Load, seconds: float, warm_up: float) -> Figures:
    """One run of the clients. RuntimeError when a request failed."""
    module = ("-m", "benchmarks.load.http_load", "--url", gateway.envoy.url)
    amount = ("--rate", str(load.rate), "--tokens", str(load.tokens))
    times = ("--seconds", str(seconds), "--warm-up", str(warm_up))
    async with child(*module, *amount, *times, log=bench.folder / "http_load.log") as (clients, _):
        before = gateway.cpu_seconds()
        assert clients.stdout is not None
        line = await asyncio.wait_for(clients.stdout.readline(), 120)
        after = gateway.cpu_seconds()
    if not line:
        raise RuntimeError(f"the clients broke off:\n{(bench.folder / 'http_load.log').read_text()[-2000:]}")
    seen: dict[str, Any] = json.loads(line)
    if seen["errors"] or not seen["requests"]:
        raise RuntimeError(f"{seen['errors']} of the requests through Envoy failed, first: {seen['first_error']}")
    return seen | _per_request(before, after, seen["requests"])


async def _at_a_time(gateway: _Gateway, load: Load, seconds: float, warm_up: float, number: int) -> Figures:
    """One run of wrk. At its end the last `streams` requests are left alone: they cost a part and do not count."""
    first = 2 * number * REQUESTS_OF_A_RUN
    await wrk.ask(gateway.envoy.url, streams=load.streams, seconds=warm_up, first=first)
    before = gateway.cpu_seconds()
    seen = await wrk.ask(gateway.envoy.url, streams=load.streams, seconds=seconds, first=first + REQUESTS_OF_A_RUN)
    after = gateway.cpu_seconds()
    figures = {"requests": seen.requests, "answer50": seen.p50, "answer99": seen.p99}
    return figures | _per_request(before, after, seen.requests)


def _per_request(before: Cpu, after: Cpu, count: int) -> Figures:
    return {
        "picker": (after.picker - before.picker) / count * 1e6,
        "envoy": (after.envoy - before.envoy) / count * 1e6,
    }
