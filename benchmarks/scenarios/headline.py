"""The picker beside an echo picker on grpc.aio: 4 KB prompts, 100 response chunks, 10 endpoints, with and without TLS.

The picker has everything on: parsing, prefix index, default scorers, in-flight accounting, metrics, logs at info. The
echo picker does nothing but answer. Both are alive all the time and get the same load in turn; the ratio is the median
of the ratios of neighbouring runs.
"""

from __future__ import annotations

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, bound, columns, middle, paired_ratio
from benchmarks.load.generator import Load
from benchmarks.processes import baseline, target
from benchmarks.procfs import resident_bytes

SUMMARY = "4 KB prompt, 100 chunks, 16 and 128 streams, beside an echo picker on grpc.aio; TLS on and off"
ENDPOINTS = 10
BOUNDS = {(False, 16): 0.15, (False, 128): 0.12, (True, 16): 0.35, (True, 128): 0.35}

COLUMNS = columns(
    ("server", "server"),
    ("tls", "TLS"),
    ("streams", "streams"),
    ("cpu", "CPU us/request"),
    ("ratio", "of grpc.aio", 3),
    ("rate", "requests/s"),
    ("peak", "requests/s per core"),
    ("pick50", "pick p50 ms", 2),
    ("pick99", "pick p99 ms", 2),
    ("chunk50", "chunk p50 ms", 2),
    ("chunk99", "chunk p99 ms", 2),
    ("rss", "RSS MB"),
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """Interleaved runs."""
    table = Table(f"medians of {bench.rounds} interleaved runs", COLUMNS, [])
    outcome.tables.append(table)
    for tls in bench.pick(smoke=(True,), quick=(False, True), full=(False, True)):
        async with baseline(bench.subfolder(), tls=tls) as unit, bench.picker(ENDPOINTS, tls=tls) as process:
            targets = {"epp": target("epp", process), "grpc.aio": unit}
            for streams in bench.pick(smoke=(16,), quick=(16, 128), full=(16, 128)):
                load = bench.sized(Load(streams=streams, tls=tls))
                what = f"{streams} streams{', TLS' if tls else ''}"
                runs = await bench.side_by_side(what, targets, load)
                ratio = paired_ratio(runs["epp"], runs["grpc.aio"], "cpu_us")
                for name, measured in runs.items():
                    cpu = middle(measured, "cpu_us")
                    table.rows.append(
                        row(
                            load,
                            server=name,
                            tls="on" if tls else "off",
                            streams=streams,
                            cpu=cpu,
                            ratio=ratio if name == "epp" else 1.0,
                            rate=middle(measured, "sps"),
                            peak=1e6 / cpu if cpu else None,
                            pick50=middle(measured, "p50") / 1e3,
                            pick99=middle(measured, "p99") / 1e3,
                            chunk50=middle(measured, "tp50") / 1e3,
                            chunk99=middle(measured, "tp99") / 1e3,
                            rss=resident_bytes(targets[name].pid) / 1e6,
                        )
                    )
                most = BOUNDS[tls, streams]
                outcome.verdicts.append(bound(f"CPU of grpc.aio's, {what}", ratio, "", most, str(load)))
