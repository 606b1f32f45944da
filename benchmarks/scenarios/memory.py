"""Thousands of answers under way at once: on one connection, and on many.

Every stream is opened, picked, answered with headers, and then held open until all are; then each gets a chunk and
ends. RSS is read before, and while all are held. Streams that do not end as they should are counted as lost.
"""

from __future__ import annotations

import asyncio

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, bound, columns
from benchmarks.inflight import FLAGS, in_flight
from benchmarks.load.generator import Load, measure
from benchmarks.processes import target
from benchmarks.procfs import resident_bytes

SUMMARY = "5 000 streams open at once on 1 and on 200 connections: memory per stream, nothing lost"
BODY = 4096
MOST_KB = 30.0

COLUMNS = columns(
    ("connections", "connections"),
    ("open", "open at once"),
    ("before", "RSS before MB", 1),
    ("held", "RSS held MB", 1),
    ("each", "KB per stream beyond its body", 1),
    ("lost", "lost"),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """A fresh picker for each number of connections: memory that a process once had, it keeps."""
    streams = bench.pick(smoke=50, quick=5000, full=5000)
    hold = bench.pick(smoke=0.5, quick=15.0, full=20.0)
    table = Table("RSS of the picker", COLUMNS, [])
    outcome.tables.append(table)
    for connections in bench.pick(smoke=(5,), quick=(1, 200), full=(1, 200)):
        load = Load(
            body=BODY, chunks=1, streams=streams, connections=connections, token_ms=hold * 1e3, once=streams,
            seconds=hold + 60, warm_up=0,
        )  # fmt: skip
        async with bench.picker(10, flags=FLAGS) as process:
            # What a process needs once, however many streams come: imports, buffers, the first blocks of the index.
            await bench.run(target("epp", process), bench.sized(Load(body=BODY, chunks=1, connections=connections)))
            before = resident_bytes(process.pid)
            bench.say(f"{streams} streams on {connections} connections")
            running = asyncio.create_task(measure(load, process.grpc_port, process.pid))
            try:
                most, held = 0.0, before
                while not running.done() and most < streams:
                    await asyncio.sleep(0.25)
                    most = max(most, (await in_flight(process)).streams)
                    held = max(held, resident_bytes(process.pid))
                held = max(held, resident_bytes(process.pid))
                figures = await running
            finally:
                running.cancel()
        lost = figures["errs"] + figures["live"]
        each = ((held - before) / max(most, 1) - BODY) / 1024
        table.rows.append(
            row(load, connections=connections, open=most, before=before / 1e6, held=held / 1e6, each=each, lost=lost)
        )
        name = f"{streams} streams on {connections} connections"
        outcome.verdicts.append(bound(f"{name}: beyond the body", each, "KB each", MOST_KB, str(load)))
        outcome.verdicts.append(bound(f"{name}: lost or never open", lost + streams - most, "streams", 0, str(load)))
