"""What collecting costs, and how fresh its values are: `python benchmarks/collector.py --endpoints 100 --picks 300`.

A second process serves a captured vLLM page on as many loopback ports; this one runs the collector as `epp serve` does,
marks endpoints as picked at the given rate, and reports its own CPU and the age of the values that picks saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import random
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from epp.api import Endpoint, EndpointTable, Plugin, PluginContext
from epp.datalayer.collector import Collector
from epp.datalayer.lane import SourceBinding
from epp_plugins.extractors.core_metrics import CoreMetricsExtractor
from epp_plugins.sources.metrics import MetricsDataSource

PAGE = Path(__file__).parents[1] / "tests" / "data" / "datalayer" / "vllm_metrics.txt"


class Server(asyncio.Protocol):
    """Answers every request with the page; head and body are two writes, as uvicorn's are."""

    body = PAGE.read_bytes()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\r\n\r\n")):
            self.transport.write(self.head)
            self.transport.write(self.body)


def serve(count: int, ports: Connection) -> None:
    """The fleet's process: sends its ports, then serves until it is terminated."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Server, "127.0.0.1", 0) for _ in range(count)]
        ports.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(run())


def _nobody(name: str) -> Plugin[Any]:
    raise LookupError(name)


async def measure(ports: list[int], picks: float, seconds: float) -> dict[str, Any]:
    """Run the collector against the fleet."""
    table, rng = EndpointTable(), random.Random(1)
    context = PluginContext("bench", time.monotonic, rng, logging.getLogger(), table, _nobody)
    source = MetricsDataSource(MetricsDataSource.Params(), context)
    extractor = CoreMetricsExtractor(CoreMetricsExtractor.Params(), context)
    collector = Collector(table, [SourceBinding(source, (extractor,))], clock=time.monotonic, rng=rng)
    for index, port in enumerate(ports):
        table.add(Endpoint(f"pod-{index}", "127.0.0.1", port))
    await collector.start()
    while np.isnan(table.columns["waiting"][table.rows]).any():  # noqa: ASYNC110 - a column announces nothing
        await asyncio.sleep(0.01)
    if picks:
        table.picked(table.rows.tolist(), time.monotonic())
    await asyncio.sleep(2.0)
    ages: list[float] = []
    fetches, cpu, began = collector.fetches, time.process_time(), time.monotonic()
    while (elapsed := time.monotonic() - began) < seconds:
        while picks and len(ages) < elapsed * picks:
            row, now = int(rng.choice(table.rows)), time.monotonic()
            ages.append(now - float(table.columns["scraped_at"][row]))
            table.picked((row,), now)
        await asyncio.sleep(0.01 if picks else seconds)
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    fetched = collector.fetches - fetches
    await collector.stop()
    result = {
        "endpoints": len(ports),
        "picks_per_second": picks,
        "cores": round(cpu / wall, 4),
        "fetches_per_second": round(fetched / wall),
        "cpu_us_per_fetch": round(cpu / max(fetched, 1) * 1e6),
    }
    if ages:
        result |= {f"age_ms_p{share:g}": round(float(np.percentile(ages, share)) * 1e3) for share in (50, 90, 99, 100)}
    return result


def main() -> None:
    """Measure once and print a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--picks", type=float, default=0.0, help="picks per second; 0: an idle pool")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    ours, theirs = multiprocessing.Pipe()
    fleet = multiprocessing.get_context("spawn").Process(target=serve, args=(options.endpoints, theirs), daemon=True)
    fleet.start()
    try:
        print(json.dumps(uvloop.run(measure(ours.recv(), options.picks, options.seconds))))
    finally:
        fleet.terminate()
        fleet.join()


if __name__ == "__main__":
    main()
