"""Keeps the endpoint table fresh: fetches every source from every endpoint, at the pace of `cadence.py`.

One timer drives everything. At each tick the intervals of all rows are computed as columns; the rows that are overdue
are fetched on their kept connections, the most overdue first. The next tick comes when the next row is due, and not
before: waking up for nothing costs a quarter of a millisecond on a machine that does other things in between. A pick
that makes a row due earlier moves the timer, so that a pick after a long idle time takes effect at once, and the stale
rows follow as fast as the budget allows. Nothing waits for anything: a slow server occupies its own connection only.

The law, its reasons and measured figures are in `docs/data-layer.md`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from epp.api.endpoints import BoolArray, Endpoint, EndpointTable, FloatArray, IntArray
from epp.api.plugin import Clock, DataSource, Extractor
from epp.datalayer.cadence import CollectorSettings, backed_off, hot_interval, intervals, is_active
from epp.datalayer.failures import FailureLog
from epp.datalayer.http_get import CpuMeter, HttpGet, ReadBuffer
from epp.datalayer.http_response import HttpError, HttpResponse
from epp.datalayer.tcp_info import round_trip_time

log = logging.getLogger(__name__)

SCRAPE_INTERVAL = "scrape_interval"
"""Column: the longest interval between two fetches, in seconds, that the collector aimed at since it last read the row.
A value younger than about twice this is as fresh as it can be; also when the pool has just woken up, and the interval
that is aimed at now is much shorter than the one that made the value old."""

_TICK = 0.015  # the shortest time between two ticks: what is due within it is fetched together
# So late a fetch may come, to go with others: a tenth of the interval, or these seconds if they are no more than a fifth.
# A wake-up finds the caches cold, and leaves behind a page where requests had their own.
_GATHERING = 0.01
_LONGEST_SLEEP = 1.0
# The event loop's own share (epoll, callbacks), which the meter cannot see: a fetch costs 1.3 times what is metered.
_UNMETERED = 1.3
_FIRST_GUESS = 500e-6  # CPU seconds per fetch, until measured
# CPU seconds of fetches that may start in one tick, so that a wake-up with many endpoints delays no request for long.
_BURST = 0.004
# A server renders its page on the loop that serves its requests: leave it at least as long as it took.
_POLITENESS = 2.0
_SMOOTHING = 0.2  # weight of a new round-trip sample
_ROUND_TRIP_SECONDS = 1.0  # between two of an endpoint: the kernel's figure is the least of minutes


@dataclass(frozen=True, slots=True)
class SourceBinding:
    """A source and the extractors that read what it fetches, in order."""

    source: DataSource[Any]
    extractors: tuple[Extractor[Any], ...] = ()


class _Lane:
    """All fetches of one source. Arrays are indexed by table row."""

    def __init__(self, binding: SourceBinding) -> None:
        self.binding = binding
        self.clients: dict[int, HttpGet] = {}
        self.started: FloatArray = np.empty(0)  # when the last fetch began; -inf: never
        self.spread: FloatArray = np.empty(0)  # factor on the interval, drawn anew for each fetch
        self.failures: FloatArray = np.empty(0)  # in a row
        self.took: FloatArray = np.empty(0)  # seconds of the last fetch that succeeded
        self.measured: FloatArray = np.empty(0)  # when the round trip was last read; -inf: never
        self.aim: FloatArray = np.empty(0)  # interval that is aimed at now
        self.present = np.empty(0, dtype=np.bool_)
        self.busy = np.empty(0, dtype=np.bool_)

    def resize(self, capacity: int) -> None:
        more = capacity - self.started.size
        if more > 0:
            self.started = np.concatenate([self.started, np.full(more, -np.inf)])
            self.spread = np.concatenate([self.spread, np.ones(more)])
            self.failures = np.concatenate([self.failures, np.zeros(more)])
            self.took = np.concatenate([self.took, np.zeros(more)])
            self.measured = np.concatenate([self.measured, np.full(more, -np.inf)])
            self.aim = np.concatenate([self.aim, np.full(more, np.nan)])
            self.present = np.concatenate([self.present, np.zeros(more, dtype=np.bool_)])
            self.busy = np.concatenate([self.busy, np.zeros(more, dtype=np.bool_)])


class Collector:
    """Fetches from the endpoints of `table` between `start` and `stop`; follows additions and removals.

    `clock` is in seconds and the one that stamps `picked_at`; `cpu_clock` gives CPU seconds of the event loop's
    thread. `metrics` is a registry with `counter(name, help, labels)`, or None.
    """

    def __init__(
        self,
        table: EndpointTable,
        sources: Sequence[SourceBinding],
        *,
        clock: Clock,
        rng: random.Random,
        metrics: Any = None,
        settings: CollectorSettings | None = None,
        cpu_clock: Clock = time.thread_time,
    ) -> None:
        self.table = table
        self.settings = settings or CollectorSettings()
        self.fetches = 0
        self.cost = _FIRST_GUESS
        self._clock = clock
        self._rng = rng
        self._failures = FailureLog(log, clock, metrics)
        self._lanes = [_Lane(binding) for binding in sources]
        self._adaptive = sum(lane.binding.source.interval is None for lane in self._lanes)
        self._buffer = ReadBuffer()
        self._meter = CpuMeter(cpu_clock)
        self._metered = 0.0
        self._counted = 0
        self._allowance = 0.0
        self._ticked = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._running = False
        self._active = False
        self._next = float("-inf")  # when something is due next
        self._behind = False  # the last tick could not start all that was due
        self._hot_interval = self.settings.refresh_interval  # of rows that have just been picked, at the last tick
        self._hot = b""  # by row, not 0: it was hot at the last tick, and the timer knows when it is due
        table.add_column(SCRAPE_INTERVAL)
        table.on_added(self._on_added)
        table.on_removed(self._on_removed)
        table.on_picked(self._on_picked)

    async def start(self) -> None:
        """Begin; endpoints that are already there are fetched at once, spread as the budget demands."""
        self._running = True
        self._ticked = self._clock()
        for row in self.table.rows.tolist():
            endpoint = self.table.endpoints[row]
            if endpoint is not None:
                self._on_added(row, endpoint)
        self._schedule(self._clock(), 0.0)

    async def stop(self) -> None:
        """Close all connections; results under way are dropped."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        closing = [client.close() for lane in self._lanes for client in lane.clients.values()]
        for lane in self._lanes:
            lane.clients.clear()
            lane.present[:] = False
            lane.busy[:] = False
        await asyncio.gather(*(task for task in closing if task is not None), return_exceptions=True)

    def state(self) -> dict[str, Any]:
        """A small picture for debugging."""
        rows = self.table.rows
        failing = sum(int(np.count_nonzero(lane.failures[lane.present] > 0)) for lane in self._lanes)
        aims = self.table.columns[SCRAPE_INTERVAL][rows]
        known = aims[~np.isnan(aims)]
        return {
            "endpoints": len(rows),
            "active": self._active,
            "fetches": self.fetches,
            "cpuMicrosecondsPerFetch": round(self.cost * 1e6),
            "failing": failing,
            "intervalSeconds": {"min": float(known.min()), "max": float(known.max())} if known.size else None,
        }

    # Rows come and go.

    def _on_added(self, row: int, endpoint: Endpoint) -> None:
        if not self._running:
            return
        generation = int(self.table.generation[row])
        for lane in self._lanes:
            lane.resize(len(self.table.endpoints))
            lane.started[row] = -np.inf
            lane.failures[row] = 0.0
            lane.took[row] = 0.0
            lane.measured[row] = -np.inf
            lane.aim[row] = np.nan
            lane.busy[row] = False
            lane.present[row] = False
            source = lane.binding.source
            try:
                client = HttpGet(
                    source.target(endpoint),
                    partial(self._done, lane, row, generation),
                    buffer=self._buffer,
                    meter=self._meter,
                    clock=self._clock,
                    max_body=self.settings.max_body,
                )
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin's code: whatever it raises must not stop discovery
                self._failures.poll(source.type, endpoint, error)
                continue
            lane.clients[row] = client
            lane.present[row] = True
        now = self._clock()
        if self._timer_at > now + _TICK:
            self._schedule(now, _TICK)

    def _on_removed(self, row: int, endpoint: Endpoint) -> None:
        for lane in self._lanes:
            client = lane.clients.pop(row, None)
            if client is not None:
                client.close()
                lane.present[row] = False
                lane.busy[row] = False
        self._failures.forget(endpoint)

    def _on_picked(self, row: int, now: float) -> None:
        """A pick makes its row hot, and wakes an idle pool: then something may be due before the timer."""
        if now + _TICK >= self._timer_at or not self._running:
            return
        if self._active:
            if row < len(self._hot) and self._hot[row]:
                return
            first = min((float(lane.started[row]) for lane in self._lanes if lane.present[row]), default=np.inf)
            due = first + self._hot_interval
        else:
            due = now
        due = max(due, self._ticked + _TICK)
        if due < self._timer_at:
            self._schedule(now, due - now)

    # The timer.

    def _schedule(self, now: float, delay: float) -> None:
        """The next tick, `delay` seconds after `now`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = now + delay
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay), self._on_timer)

    def _on_timer(self) -> None:
        if not self._running:
            return
        now = self._clock()
        self._next = now + _LONGEST_SLEEP
        self._behind = False
        try:
            self._tick(now)
        except Exception:
            log.exception("The collector failed at one tick; it goes on with the next")
        finally:
            self._schedule(now, max(self._next - now, _TICK))

    def _tick(self, now: float) -> None:
        self._measure(now)
        rows = self.table.rows
        since_pick: FloatArray = now - self.table.columns["picked_at"][rows]
        self._active = is_active(self.settings, since_pick)
        for lane in self._lanes:
            here = rows[lane.present[rows]] if rows.size else rows
            if not here.size:
                continue
            since_fetch: FloatArray = now - lane.started[here]
            fixed = lane.binding.source.interval
            if fixed is None:
                picked = since_pick if here.size == rows.size else now - self.table.columns["picked_at"][here]
                wanted = intervals(
                    self.settings,
                    cost=self.cost,
                    sources=self._adaptive,
                    since_pick=picked,
                    since_fetch=since_fetch,
                )
                self._hot_interval = hot_interval(self.settings, self.cost, self._adaptive, wanted)
                hot = np.zeros(lane.aim.size, dtype=np.bool_)
                hot[here] = wanted <= self._hot_interval
                self._hot = hot.tobytes()
                wanted = np.maximum(wanted, _POLITENESS * lane.took[here])
                lane.aim[here] = wanted
                longest = self.table.columns[SCRAPE_INTERVAL]
                longest[here] = np.fmax(longest[here], wanted)
            else:
                wanted = np.full(here.size, fixed)
            busy = lane.busy[here]
            self._start_overdue(lane, here, since_fetch, wanted, busy, now)
            if busy.any():
                self._give_up(lane, here[busy & (since_fetch > self.settings.timeout)])

    def _measure(self, now: float) -> None:
        # Only what a fetch costs: a tick costs the same however few fetches there are, and sharing it among them would
        # slow them down more and more.
        fetched = self.fetches - self._counted
        if fetched:
            sample = (self._meter.total - self._metered) * _UNMETERED / fetched
            self._metered, self._counted = self._meter.total, self.fetches
            self.cost += (sample - self.cost) * (1.0 - 0.98**fetched)
            self.cost = max(self.cost, 1e-6)
        earned = (now - self._ticked) * self._earning()
        self._allowance = min(self._allowance + earned, max(1.0, _BURST / self.cost))
        self._ticked = now

    def _earning(self) -> float:
        """Fetches per second that the budget pays for, with room to catch up."""
        return 1.25 * self.settings.cpu_budget / self.cost

    def _start_overdue(
        self, lane: _Lane, rows: IntArray, since_fetch: FloatArray, wanted: FloatArray, busy: BoolArray, now: float
    ) -> None:
        due = backed_off(self.settings, wanted, lane.failures[rows]) * lane.spread[rows]
        lateness = since_fetch / due
        ready = np.flatnonzero((lateness >= 1.0) & ~busy)
        room = int(self._allowance) if lane.binding.source.interval is None else int(max(1.0, _BURST / self.cost))
        if ready.size > room:
            self._behind = True
            ready = ready[np.argsort(-lateness[ready], kind="stable")[:room]]
        left = due - since_fetch
        if lane.binding.source.interval is None:
            self._allowance -= ready.size
            left = np.maximum(left, (1.0 - self._allowance) / self._earning())  # before that none is affordable
        jitter = self.settings.jitter
        left[ready] = due[ready]
        if busy.any():
            left[busy] = np.maximum(left[busy], self.settings.timeout - since_fetch[busy])  # slow: it is given up then
        self._next = min(self._next, now + self._gathered(left, float(wanted.min())))
        for row in rows[ready].tolist():
            lane.started[row] = now
            lane.spread[row] = self._rng.uniform(1.0 - jitter, 1.0 + jitter)
            lane.busy[row] = True
            lane.clients[row].get()

    def _gathered(self, left: FloatArray, interval: float) -> float:
        """Seconds until what is due next is fetched: with what is due soon after, though no more than half a burst."""
        first = float(left.min())
        if self._behind:
            return first
        together = left[left <= first + max(0.1 * interval, min(0.2 * interval, _GATHERING))]
        most = int(0.5 * _BURST / self.cost) + 1
        if together.size > most:
            together = np.partition(together, most - 1)[:most]
        return float(together.max())

    def _give_up(self, lane: _Lane, late: IntArray) -> None:
        for row in late.tolist():
            lane.clients[row].cancel()
            generation = int(self.table.generation[row])
            self._done(lane, row, generation, HttpError(f"no answer within {self.settings.timeout:g} s"))

    # Results.

    def _done(self, lane: _Lane, row: int, generation: int, result: HttpResponse | Exception) -> None:
        self.fetches += 1
        endpoint = self.table.endpoints[row]
        if endpoint is None or not self._running or not self.table.is_current(row, generation):
            return  # the answer of an endpoint that is gone: the row may be another's
        lane.busy[row] = False
        source = lane.binding.source
        if isinstance(result, HttpResponse) and result.status != 200:
            result = HttpError(f"status {result.status} instead of 200")
        if isinstance(result, Exception):
            lane.failures[row] += 1.0
            self._failures.poll(source.type, endpoint, result)
            return
        if lane.failures[row]:
            lane.failures[row] = 0.0
            self._failures.recovered(source.type, endpoint)
        now = self._clock()
        lane.took[row] = now - lane.started[row]
        if source.interval is None:
            self.table.columns[SCRAPE_INTERVAL][row] = lane.aim[row]
        if now - lane.measured[row] >= _ROUND_TRIP_SECONDS:
            lane.measured[row] = now
            self._measure_round_trip(lane.clients[row], row)
        for extractor in lane.binding.extractors:
            try:
                extractor.extract(row, endpoint, result.body)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # one bad extractor must not keep the others from the page
                self._failures.extract(source.type, extractor.type, endpoint, error)

    def _measure_round_trip(self, client: HttpGet, row: int) -> None:
        sock = client.socket()
        sample = round_trip_time(sock) if sock is not None else None
        if sample is None:
            sample = client.connect_seconds
        column = self.table.columns["rtt"]
        known = column[row]
        column[row] = sample if np.isnan(known) else known + _SMOOTHING * (sample - known)
