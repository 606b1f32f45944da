"""A thousand pods that come and go. `CHURN_SECONDS=300` for as long as it takes to show that nothing stays behind.

Prints how long a change needs from the API server to the table: `pytest -s`. Only with `CHURN_SECONDS` have times their
bounds: a run among other tests shows that everything is seen, not how fast this machine is.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
import tracemalloc
from array import array
from pathlib import Path

import pytest

from epp.api.endpoints import Endpoint, EndpointTable
from epp.kubernetes.connection import connect
from epp.kubernetes.pool import PoolWatcher
from tests.kubernetes.api_server import PODS, POOLS, ApiServer, pod, pool

PODS_AT_ONCE, RATE = 1000, 50
MEASURED = "CHURN_SECONDS" in os.environ
SECONDS = float(os.environ.get("CHURN_SECONDS", "6"))
STALE_SECONDS = 1.0


class Latencies:
    """From the change in the API server to the change in the table."""

    def __init__(self, table: EndpointTable) -> None:
        self.told: dict[str, float] = {}
        self.took = array("d")
        self.unseen = 0
        table.on_added(self._seen)
        table.on_removed(self._seen)

    def tell(self, host_port: str) -> None:
        """A change is made now. One that was not seen yet never will be measured: a slow machine, and a short life."""
        self.unseen += host_port in self.told
        self.told[host_port] = time.monotonic()

    def _seen(self, _row: int, endpoint: Endpoint) -> None:
        at = self.told.pop(endpoint.host_port, None)
        if at is not None:
            self.took.append(time.monotonic() - at)


class Lag:
    """How late the event loop is, which it shares with the API server of this test."""

    def __init__(self) -> None:
        self.late = array("d")
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            wanted = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self.late.append(time.monotonic() - wanted)

    async def stop(self) -> list[float]:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return sorted(self.late)


def of(share: float, values: list[float]) -> float:
    """A quantile of sorted values."""
    return values[int((len(values) - 1) * share)]


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


@pytest.mark.timeout(SECONDS + 120)
async def test_a_thousand_pods_come_and_go(tmp_path: Path) -> None:
    # From the beginning: pods that were made unseen would seem to add memory when others take their place.
    tracemalloc.start()
    async with ApiServer().serving() as server:
        server.put(POOLS, pool("pool", 8000))
        alive: dict[str, str] = {}
        for number in range(PODS_AT_ONCE):
            alive[f"p{number}"] = address(number)
            server.put(PODS, pod(f"p{number}", address(number)))
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(server.kubeconfig())
        connection = await connect({"KUBECONFIG": str(kubeconfig)})
        table = EndpointTable()
        watcher = PoolWatcher(connection, table, "ns", "pool", clock=time.monotonic, rng=random.Random(1))
        await watcher.start()
        while len(table) < PODS_AT_ONCE:  # noqa: ASYNC110 - a table announces nothing
            await asyncio.sleep(0.02)
        latencies, lag, rng = Latencies(table), Lag(), random.Random(2)
        deleted: list[tuple[float, str]] = []
        stale = 0
        number = PODS_AT_ONCE
        began, changes = time.monotonic(), 0
        memory: list[int] = []
        gc.collect()
        gc.freeze()  # what is there is not looked at again: that would stop the loop for 100 ms each time
        while (elapsed := time.monotonic() - began) < SECONDS:
            while changes < elapsed * RATE:
                changes += 1
                if len(alive) >= PODS_AT_ONCE:
                    name = rng.choice(list(alive))
                    gone = alive.pop(name)
                    latencies.tell(f"{gone}:8000")
                    deleted.append((time.monotonic(), f"{gone}:8000"))
                    server.delete(PODS, name)
                else:
                    number += 1
                    alive[f"p{number}"] = address(number)
                    latencies.tell(f"{address(number)}:8000")
                    server.put(PODS, pod(f"p{number}", address(number)))
            while deleted and deleted[0][0] < time.monotonic() - STALE_SECONDS:
                stale += table.row_of(deleted.pop(0)[1]) is not None
            if changes // RATE > len(memory) * max(1, SECONDS // 10):
                server.log = server.log[-1000:]
                gc.collect()
                memory.append(tracemalloc.get_traced_memory()[0])
            await asyncio.sleep(0.01)
        tracemalloc.stop()
        gc.unfreeze()
        for _ in range(300):
            if not latencies.told:
                break
            await asyncio.sleep(0.02)
        took, late = sorted(latencies.took), await lag.stop()
        middle, last = memory[len(memory) // 2], memory[-1]
        print(
            f"{changes} changes, {len(took)} seen: p50 {of(0.5, took) * 1e3:.1f} ms, "
            f"p99 {of(0.99, took) * 1e3:.1f} ms, max {took[-1] * 1e3:.1f} ms; "
            f"the loop was late by {of(0.99, late) * 1e3:.1f} ms (p99); "
            f"memory {middle / 1e6:.2f} MB at half time, {last / 1e6:.2f} MB at the end; stale {stale}"
        )
        assert {endpoint.host_port for endpoint in table.all(0.0)} == {f"{ip}:8000" for ip in alive.values()}
        if MEASURED:
            assert stale == 0
            # A change takes a handful of turns of the loop: of the server that tells it, the socket, the watch. How
            # late each of them comes on a busy machine is not the picker's doing.
            assert of(0.99, took) < 0.1 + 5 * of(0.99, late)
            assert latencies.unseen < changes / 100
        assert len(took) >= changes - 2 * latencies.unseen
        assert len(watcher.endpoints._owner) == len(watcher.endpoints._rows) == watcher.endpoints.pods == len(alive)
        assert len(table.endpoints) <= 2048  # rows are used again
        assert last < middle + 500_000
        await watcher.stop()
        await connection.close()
