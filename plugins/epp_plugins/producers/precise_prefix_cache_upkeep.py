"""Keeps the precise index in order beside the traffic: expiry, sweeps, snapshots, and what is told once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from epp.api import Clock, EndpointTable
from epp.datalayer.durations import seconds
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.snapshot import SnapshotError, load_snapshot, save_snapshot
from epp_plugins.producers.precise_prefix_cache_params import PrecisePrefixCacheParams

EVERY = 0.05
REPORT = 1.0
TIDY_SLICES = 8
EXPIRED = 64
"""Speculative picks that end in one go: some 50 us each."""


class Upkeep:
    """One task from `start` to `stop`. `report` is called once a second."""

    def __init__(
        self,
        index: PreciseIndex,
        params: PrecisePrefixCacheParams,
        *,
        table: EndpointTable,
        clock: Clock,
        log: logging.Logger,
        name: str,
        report: Callable[[], None],
    ) -> None:
        self._index = index
        self._file = params.snapshot_file
        self._trust = seconds(params.snapshot_trust) or 0.0
        self._save_interval = seconds(params.snapshot_interval)
        self._log_interval = seconds(params.indexer_config.kv_block_index_config.metrics_logging_interval)
        self._table = table
        self._clock = clock
        self._log = log
        self._name = name
        self._report = report
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on."""
        self._task = asyncio.create_task(self._run(self._clock()), name=f"{self._name} upkeep")

    async def stop(self) -> None:
        """End, and write the snapshot."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self._save()

    async def load(self) -> None:
        """The snapshot, if there is one. One that cannot be read is said in the log."""
        if not self._file:
            return
        try:
            count = await load_snapshot(self._index, self._file)
        except FileNotFoundError:
            return
        except (OSError, SnapshotError) as error:
            self._log.warning("%s: snapshot %s is not used: %s", self._name, self._file, error)
        else:
            self._log.info("%s: %d blocks from %s", self._name, count, self._file)

    async def _save(self) -> None:
        if not self._file:
            return
        try:
            await save_snapshot(self._index, self._file)
        except OSError as error:
            self._log.warning("%s: cannot write the snapshot: %s", self._name, error)

    async def _run(self, began: float) -> None:
        due = {"report": began, "log": began, "save": began}
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self._turn(began, due)
            except Exception:  # a defect in one turn must not end them all
                self._log.exception("%s: upkeep of the index failed", self._name)
                await asyncio.sleep(REPORT)

    async def _turn(self, began: float, due: dict[str, float]) -> None:
        index, now = self._index, self._clock()
        more = True
        while more:
            more = index.expire(now, EXPIRED) == EXPIRED
            await asyncio.sleep(0)
        if index.restored and now - began >= self._trust:
            index.drop_restored()
            for name in [name for name in index.lanes.endpoints() if self._table.row_of(name) is None]:
                index.clear(name)  # it was gone before this picker started
        for _ in range(TIDY_SLICES):
            if not index.tidy():
                break
            await asyncio.sleep(0)
        if now - due["report"] >= REPORT:
            due["report"] = now
            self._report()
        if self._log_interval and now - due["log"] >= self._log_interval:
            due["log"] = now
            self._log.info("%s: %s", self._name, sizes(index))
        if self._save_interval and now - due["save"] >= self._save_interval:
            due["save"] = now
            await self._save()


def sizes(index: PreciseIndex) -> dict[str, Any]:
    """What the index holds, and what happened to it."""
    return {
        "blocks": index.blocks.count,
        "bytes": index.blocks.size_bytes,
        "bytesPerBlock": round(index.blocks.bytes_per_block, 1),
        "evicted": index.blocks.evicted,
        "endpoints": len(index.lanes),
        **{name: getattr(index.counters, name) for name in index.counters.__slots__},
    }
