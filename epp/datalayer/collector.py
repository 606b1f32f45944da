"""Keeps the endpoint table fresh: fetches every source from every endpoint, at the pace of `cadence.py`.

One timer drives everything. Each row knows when it is due; at a tick the rows that are due are fetched on their kept
connections, the most overdue first. A few times a second a survey computes the intervals of all rows anew, as columns.
The next tick comes when the next row is due, with those that are due soon after, and not before: waking up for nothing
costs a quarter of a millisecond on a machine that does other things in between. A pick that makes a row due earlier
moves the timer, so that a pick after a long idle time takes effect at once, and the stale rows follow as fast as the
budget allows. Nothing waits for anything: a slow server occupies its own connection only.

The law, its reasons and measured figures are in `docs/data-layer.md`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from epp.api.endpoints import Endpoint, EndpointTable, FloatArray
from epp.api.plugin import Clock
from epp.datalayer.cadence import CollectorSettings, Pace, backed_off, is_active, is_hot, pace
from epp.datalayer.failures import FailureLog
from epp.datalayer.http_get import CpuMeter, HttpGet, ReadBuffer
from epp.datalayer.http_response import HttpError, HttpResponse
from epp.datalayer.lane import Lane, SourceBinding
from epp.datalayer.tcp_info import round_trip_time

log = logging.getLogger(__name__)

SCRAPE_INTERVAL = "scrape_interval"
"""Column: the longest interval between two fetches, in seconds, that the collector aimed at since it last read the row.
A value younger than about twice this is as fresh as it can be; also when the pool has just woken up, and the interval
that is aimed at now is much shorter than the one that made the value old."""

_TICK = 0.015  # the shortest time between two ticks: what is due within it is fetched together
# So late a fetch may come, to go with others: a fifteenth of the interval, or these seconds where half of it is
# no less. A wake-up finds the caches cold, and leaves a page behind where requests had their own. Of two groups
# under the shortest interval one always meets the other within half of it; from then on they go together, and are
# late by the spread of their intervals only.
_GATHERING = 0.03
_SURVEY = 0.1  # seconds between two; what makes a row hot is noticed at once
_LONGEST_SLEEP = 1.0
# The event loop's own share (epoll, callbacks), which the meter cannot see: a fetch costs 1.3 times what is metered.
_UNMETERED = 1.3
_FIRST_GUESS = 500e-6  # CPU seconds per fetch, until measured
# CPU seconds of fetches that may start in one tick, so that a wake-up with many endpoints delays no request for long.
_BURST = 0.003
# A server renders its page on the loop that serves its requests: leave it at least as long as it took.
_POLITENESS = 2.0
_SMOOTHING = 0.2  # weight of a new round-trip sample
_ROUND_TRIP_SECONDS = 1.0  # between two of an endpoint: the kernel's figure is the least of minutes


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
        self._lanes = [Lane(binding) for binding in sources]
        self._adaptive = [lane for lane in self._lanes if lane.fixed is None]
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
        self._surveyed = float("-inf")
        self._pace = Pace(self.settings.idle_interval, self.settings.idle_interval)  # at the last survey
        self._hot = bytearray()  # by row, not 0: hot when last looked at, and due accordingly
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
            lane.present[:] = lane.busy[:] = False
            lane.due[:] = np.inf
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
        capacity = len(self.table.endpoints)
        self._hot.extend(bytes(capacity - len(self._hot)))
        self._hot[row] = 0
        for lane in self._lanes:
            lane.reset(row, capacity)
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
            lane.open(row, client)
        self._surveyed = float("-inf")
        now = self._clock()
        if self._timer_at > now + _TICK:
            self._schedule(now, _TICK)

    def _on_removed(self, row: int, endpoint: Endpoint) -> None:
        for lane in self._lanes:
            lane.close(row)
        self._failures.forget(endpoint)

    def _on_picked(self, row: int, now: float) -> None:
        """A pick makes its row hot, and wakes an idle pool: then something may be due before the timer."""
        if not self._running or (self._active and self._hot[row]):
            return
        if self._active:
            self._hot[row] = 1
            for lane in self._adaptive:
                if lane.present[row] and not lane.failures[row]:
                    wanted = max(self._pace.hot, _POLITENESS * float(lane.took[row]))
                    due = float(lane.started[row]) + wanted * float(lane.spread[row])
                    lane.due[row] = min(float(lane.due[row]), due)
                    # Hot rows go together: this one with those of the last tick, whose next fetch is near.
                    self._hurry(now, max(due, self._ticked + self._pace.hot))
        else:
            self._surveyed = float("-inf")
            self._hurry(now, now)

    # The timer.

    def _schedule(self, now: float, delay: float) -> None:
        """The next tick, `delay` seconds after `now`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = now + delay
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay), self._on_timer)

    def _hurry(self, now: float, due: float) -> None:
        """Something is due, perhaps before the timer."""
        due = max(due, self._ticked + _TICK)
        if due + _TICK < self._timer_at:
            self._schedule(now, due - now)

    def _on_timer(self) -> None:
        if not self._running:
            return
        now = self._clock()
        self._next = now + _LONGEST_SLEEP
        try:
            self._tick(now)
        except Exception:
            log.exception("The collector failed at one tick; it goes on with the next")
        finally:
            self._schedule(now, max(self._next - now, _TICK))

    def _tick(self, now: float) -> None:
        self._measure(now)
        if now - self._surveyed >= _SURVEY:
            self._survey(now)
        for lane in self._lanes:
            if lane.due.size:
                self._start_due(lane, now)

    def _survey(self, now: float) -> None:
        """The pace of the pool as it is now, and with it when each row is due."""
        self._surveyed = now
        rows = self.table.rows
        since_pick: FloatArray = now - self.table.columns["picked_at"][rows]
        self._active = is_active(self.settings, since_pick)
        self._hot = bytearray(len(self.table.endpoints))
        for lane in self._adaptive:
            if not rows.size:
                continue
            hot = is_hot(self.settings, since_pick, now - lane.started[rows]) & self._active
            count = int(np.count_nonzero(hot))
            self._pace = pace(
                self.settings,
                cost=self.cost,
                sources=len(self._adaptive),
                count=rows.size,
                hot=count,
                active=self._active,
            )
            for row in rows[hot].tolist():
                self._hot[row] = 1
            wanted = np.maximum(np.where(hot, self._pace.hot, self._pace.rest), _POLITENESS * lane.took[rows])
            due = lane.started[rows] + backed_off(self.settings, wanted, lane.failures[rows]) * lane.spread[rows]
            lane.due[rows] = np.where(lane.present[rows], np.where(lane.busy[rows], lane.due[rows], due), np.inf)
            lane.aim[rows] = wanted
            longest = self.table.columns[SCRAPE_INTERVAL]
            longest[rows] = np.where(lane.present[rows], np.fmax(longest[rows], wanted), longest[rows])

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
        self._allowance = min(self._allowance + earned, self._burst())
        self._ticked = now

    def _earning(self) -> float:
        """Fetches per second that the budget pays for, with room to catch up."""
        return 1.25 * self.settings.cpu_budget / self.cost

    def _burst(self) -> float:
        """Fetches that one tick may start."""
        return max(1.0, _BURST / self.cost)

    def _start_due(self, lane: Lane, now: float) -> None:
        ready = np.flatnonzero(lane.due <= now)
        earliest = now
        if ready.size:
            busy = lane.busy[ready]
            if busy.any():
                for row in ready[busy].tolist():
                    self._give_up(lane, row, now)
                ready = ready[~busy]
            room = int(self._allowance) if lane.fixed is None else int(self._burst())
            if ready.size > room:
                lateness = (now - lane.started[ready]) / lane.aim[ready]
                ready = ready[np.argsort(-lateness, kind="stable")[:room]]
            if lane.fixed is None:
                self._allowance -= ready.size
            for row in ready.tolist():
                self._start(lane, row, now)
        if lane.fixed is None and self._allowance < 1.0:  # before that none is affordable
            earliest = now + (1.0 - self._allowance) / self._earning()
        self._next = min(self._next, max(self._gathered(lane, now), earliest))

    def _start(self, lane: Lane, row: int, now: float) -> None:
        jitter = self.settings.jitter
        lane.spread[row] = self._rng.uniform(1.0 - jitter, 1.0 + jitter)
        lane.started[row] = now
        lane.busy[row] = True
        self._set_due(lane, row, now)
        if lane.fixed is None:
            longest = self.table.columns[SCRAPE_INTERVAL]
            longest[row] = np.fmax(longest[row], lane.aim[row])
        lane.clients[row].get()

    def _set_due(self, lane: Lane, row: int, now: float) -> None:
        """When the row is due after the fetch that began last."""
        wanted = lane.fixed
        if wanted is None:
            since_pick = now - float(self.table.columns["picked_at"][row])
            hot = self._active and is_hot(self.settings, since_pick, now - float(lane.started[row]))
            self._hot[row] = hot
            wanted = max(self._pace.hot if hot else self._pace.rest, _POLITENESS * float(lane.took[row]))
        lane.aim[row] = wanted
        failures = lane.failures[row : row + 1]
        if failures[0]:
            wanted = float(backed_off(self.settings, np.array([wanted]), failures)[0])
        lane.due[row] = lane.started[row] + wanted * lane.spread[row]

    def _gathered(self, lane: Lane, now: float) -> float:
        """When what is due next is fetched: with what is due soon after, as much as one tick may start."""
        interval = lane.fixed or (self._pace.hot if 1 in self._hot else self._pace.rest)
        first = float(lane.due.min())
        if first <= now:
            return now
        together = lane.due[lane.due <= first + max(interval / 15, min(0.5 * interval, _GATHERING))]
        most = int(self._burst())
        if together.size > most:
            return float(np.partition(together, most - 1)[most - 1])
        return float(together.max())

    def _give_up(self, lane: Lane, row: int, now: float) -> None:
        """A fetch is under way although the next one is due: it may take until its timeout."""
        until = float(lane.started[row]) + self.settings.timeout
        if now < until:
            lane.due[row] = until
            return
        lane.clients[row].cancel()
        generation = int(self.table.generation[row])
        self._done(lane, row, generation, HttpError(f"no answer within {self.settings.timeout:g} s"))

    # Results.

    def _done(self, lane: Lane, row: int, generation: int, result: HttpResponse | Exception) -> None:
        self.fetches += 1
        endpoint = self.table.endpoints[row]
        if endpoint is None or not self._running or not self.table.is_current(row, generation):
            return  # the answer of an endpoint that is gone: the row may be another's
        lane.busy[row] = False
        source = lane.binding.source
        now = self._clock()
        if isinstance(result, HttpResponse) and result.status != 200:
            result = HttpError(f"status {result.status} instead of 200")
        if isinstance(result, Exception):
            lane.failures[row] += 1.0
            self._set_due(lane, row, now)
            self._failures.poll(source.type, endpoint, result)
            return
        if lane.failures[row]:
            lane.failures[row] = 0.0
            self._failures.recovered(source.type, endpoint)
        lane.took[row] = now - lane.started[row]
        given = float(lane.due[row])
        self._set_due(lane, row, now)
        if lane.due[row] < given:  # it was waited for beyond its time
            self._hurry(now, float(lane.due[row]))
        if lane.fixed is None:
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
