"""The collector against real servers on loopback."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from epp.api import DataSource, Endpoint, EndpointTable, Extractor, NoParams, PluginContext, ScrapeTarget
from epp.datalayer.cadence import CollectorSettings
from epp.datalayer.collector import SCRAPE_INTERVAL, Collector
from epp.datalayer.lane import SourceBinding

Until = Callable[[Callable[[], bool]], Awaitable[None]]
QUICK = CollectorSettings(refresh_interval=0.01, active_interval=0.02, idle_interval=0.05, timeout=0.3, max_backoff=0.2)


class CountedMetrics:
    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    def counter(self, name: str, help: str, labels: tuple[str, ...]) -> Any:
        counts = self.counts

        class Family:
            def labels(self, *values: str) -> Any:
                class Child:
                    def inc(self, n: float = 1) -> None:
                        counts[(name, *values)] += int(n)

                return Child()

        return Family()


class PageSource(DataSource[NoParams]):
    type = "page-source"
    fixed: float | None = None

    def target(self, endpoint: Endpoint) -> ScrapeTarget:
        if endpoint.labels.get("scrape") == "no":
            raise ValueError("this one has no page")
        return ScrapeTarget(endpoint.address, endpoint.port, "/metrics")

    @property
    def interval(self) -> float | None:
        return self.fixed


class PageExtractor(Extractor[NoParams]):
    type = "page-extractor"

    def extract(self, row: int, endpoint: Endpoint, data: bytes) -> None:
        self.context.table.attributes[row]["pages"] = self.context.table.attributes[row].get("pages", 0) + 1
        self.context.table.attributes[row]["page"] = data
        self.context.table.columns["scraped_at"][row] = self.context.clock()


class BadExtractor(Extractor[NoParams]):
    type = "bad-extractor"
    error: BaseException = ValueError("lacks what I need")

    def extract(self, row: int, endpoint: Endpoint, data: bytes) -> None:
        raise self.error


class Bench:
    def __init__(
        self,
        settings: CollectorSettings = QUICK,
        extractors: tuple[type[Extractor[Any]], ...] = (),
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.table = EndpointTable(capacity=2)
        self.metrics = CountedMetrics()
        context = PluginContext(
            "p", time.monotonic, random.Random(1), logging.getLogger(), self.table, lambda name: pytest.fail(name)
        )
        self.source = PageSource(NoParams(), context)
        plugins = tuple(extractor(NoParams(), context) for extractor in (*extractors, PageExtractor))
        self.collector = Collector(
            self.table,
            [SourceBinding(self.source, plugins)],
            clock=time.monotonic,
            rng=random.Random(2),
            metrics=self.metrics,
            settings=settings,
            cpu_clock=cpu_clock,
        )
        self.delays: list[float] = []
        """From each tick to the next."""
        schedule = self.collector._schedule
        self.collector._schedule = lambda now, delay: (self.delays.append(delay), schedule(now, delay))  # type: ignore[method-assign, assignment, func-returns-value]

    def add(self, port: int, name: str = "pod", **labels: str) -> int:
        return self.table.add(Endpoint(name, "127.0.0.1", port, labels=labels))

    def pages(self, row: int) -> int:
        pages = self.table.attributes[row].get("pages", 0)
        assert isinstance(pages, int)
        return pages


async def test_the_round_trip_is_read_less_often_than_pages(
    serve: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[float] = []

    def read(_: object) -> float:
        reads.append(0.001)
        return 0.001

    monkeypatch.setattr("epp.datalayer.collector.round_trip_time", read)
    bench = Bench()
    row = bench.add((await serve()).port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 10)
    assert 0 < len(reads) <= bench.pages(row) // 2
    assert bench.table.columns["rtt"][row] == 0.001
    await bench.collector.stop()


async def test_every_endpoint_is_fetched_again_and_again(serve: Any, until: Until) -> None:
    servers = [await serve() for _ in range(5)]
    bench = Bench()
    rows = [bench.add(server.port, f"pod-{index}") for index, server in enumerate(servers[:3])]
    await bench.collector.start()
    rows += [bench.add(server.port, f"late-{index}") for index, server in enumerate(servers[3:])]
    await until(lambda: all(bench.pages(row) >= 3 for row in rows))
    assert all(server.connections == 1 for server in servers)
    table = bench.table
    assert (table.columns["rtt"][rows] > 0).all()
    assert (table.columns[SCRAPE_INTERVAL][rows] == 0.05).all()
    state = bench.collector.state()
    assert state["endpoints"] == 5
    assert state["failing"] == 0
    assert state["active"] is False
    assert state["intervalSeconds"] == {"min": 0.05, "max": 0.05}
    assert bench.collector.cost > 0
    await bench.collector.stop()
    fetches = bench.collector.fetches
    await asyncio.sleep(0.1)
    assert bench.collector.fetches == fetches
    assert not bench.metrics.counts


async def test_a_pick_wakes_an_idle_pool(serve: Any, until: Until) -> None:
    server, other = await serve(), await serve()
    bench = Bench(CollectorSettings(idle_interval=3600.0))
    row, sibling = bench.add(server.port), bench.add(other.port, "other")
    await bench.collector.start()
    await until(lambda: bench.pages(row) == bench.pages(sibling) == 1)
    await asyncio.sleep(0.1)
    assert bench.pages(row) == 1
    bench.table.picked((row,), time.monotonic())
    await until(lambda: bench.pages(row) >= 2 and bench.pages(sibling) >= 2)
    assert bench.collector.state()["active"]
    assert bench.table.columns[SCRAPE_INTERVAL][sibling] == 0.15
    await bench.collector.stop()


async def test_a_pick_makes_its_row_due_before_the_others(serve: Any, until: Until) -> None:
    server, other = await serve(), await serve()
    bench = Bench(CollectorSettings(active_interval=3600.0, idle_interval=3600.0))
    row, sibling = bench.add(server.port), bench.add(other.port, "other")
    await bench.collector.start()
    bench.table.picked((row,), time.monotonic())
    await until(lambda: bench.pages(row) >= 2)
    assert bench.collector.state()["active"]
    before = bench.pages(sibling)
    bench.table.picked((sibling,), time.monotonic())
    await until(lambda: bench.pages(sibling) > before)
    await bench.collector.stop()


async def test_a_collector_with_nothing_to_do_sleeps(serve: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await serve()
    bench = Bench(CollectorSettings(idle_interval=3600.0))
    row = bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) == 1)
    ticks: list[float] = []
    tick = bench.collector._tick
    monkeypatch.setattr(bench.collector, "_tick", lambda now: (ticks.append(now), tick(now)))
    began = time.monotonic()
    await asyncio.sleep(0.5)
    assert len(ticks) <= 2 + (time.monotonic() - began)
    await bench.collector.stop()


async def test_the_fetches_of_an_idle_pool_go_together(serve: Any, until: Until) -> None:
    """32 endpoints each 0.6 s are one every 19 ms: fetched one by one, they wake a process that has nothing to do."""
    servers = [await serve() for _ in range(32)]
    bench = Bench(CollectorSettings(idle_interval=0.6), cpu_clock=lambda: 0.0)
    rows = [bench.add(server.port, f"pod-{index}") for index, server in enumerate(servers)]
    await bench.collector.start()
    await until(lambda: all(bench.pages(row) >= 1 for row in rows))
    bench.delays.clear()
    fetches = bench.collector.fetches
    await until(lambda: all(bench.pages(row) >= 4 for row in rows))
    assert len(bench.delays) <= (bench.collector.fetches - fetches) / 3
    bench.delays.clear()
    bench.table.picked((rows[0],), time.monotonic())
    await until(lambda: len(bench.delays) > 5)
    assert min(bench.delays[1:]) < 0.03
    assert bench.delays[0] <= 0.015  # a pick wakes the pool at once
    assert max(bench.delays[1:5]) < 0.055 + 0.025  # and what is hot waits half of its 50 ms at most
    await bench.collector.stop()


async def test_the_fetches_of_hot_endpoints_find_together(serve: Any, until: Until) -> None:
    """They begin in two groups, half an interval apart: the farthest there is."""
    servers = [await serve() for _ in range(8)]
    settings = CollectorSettings(active_interval=1.0, hot_for=60.0, idle_after=60.0)
    bench = Bench(settings, cpu_clock=lambda: 0.0)
    rows = [bench.add(server.port, f"pod-{index}") for index, server in enumerate(servers[:4])]
    bench.table.picked(tuple(rows), time.monotonic())
    await bench.collector.start()
    await until(lambda: all(bench.pages(row) >= 1 for row in rows))
    await asyncio.sleep(0.025)
    rows += [bench.add(server.port, f"pod-{index}") for index, server in enumerate(servers[4:], 4)]
    bench.table.picked(tuple(rows), time.monotonic())
    await until(lambda: all(bench.pages(row) >= 12 for row in rows))
    bench.delays.clear()
    fetches = bench.collector.fetches
    await until(lambda: bench.collector.fetches >= fetches + 40)
    assert len(bench.delays) <= 8  # five rounds; two groups would take ten ticks
    await bench.collector.stop()


async def test_an_endpoint_that_gets_hot_goes_with_those_that_are(serve: Any, until: Until) -> None:
    servers = [await serve() for _ in range(2)]
    settings = CollectorSettings(refresh_interval=0.4, active_interval=60.0, hot_for=60.0, idle_after=60.0, jitter=0.0)
    bench = Bench(settings)
    rows = [bench.add(server.port, f"pod-{index}") for index, server in enumerate(servers)]
    bench.table.picked((rows[0],), time.monotonic())
    await bench.collector.start()
    await until(lambda: bench.pages(rows[0]) >= 2)
    assert bench.pages(rows[1]) == 1
    bench.delays.clear()
    bench.table.picked((rows[1],), time.monotonic())  # due since 0.4 s after its first page
    assert not bench.delays  # the timer stays where it was
    await until(lambda: bench.pages(rows[1]) >= 2)
    assert len(bench.delays) == 1
    assert bench.pages(rows[0]) >= 2
    await bench.collector.stop()


async def test_no_more_fetches_go_together_than_one_tick_starts(serve: Any, until: Until) -> None:
    server = await serve()
    bench = Bench()
    bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(0) >= 1)
    await bench.collector.stop()
    lane = bench.collector._lanes[0]
    lane.due = np.linspace(0.1, 0.104, 10)
    bench.collector.cost = 0.7e-3  # of which 3 ms pay for 4
    assert int(np.count_nonzero(lane.due <= bench.collector._gathered(lane, 0.0))) == 4


async def test_what_is_overdue_does_not_wait_to_go_together(serve: Any, until: Until) -> None:
    servers = [await serve() for _ in range(32)]
    bench = Bench(CollectorSettings(idle_interval=30.0))  # one tick may start 8 before it knows what they cost
    rows = [bench.add(server.port, f"pod-{index}") for index, server in enumerate(servers)]
    await bench.collector.start()
    await until(lambda: all(bench.pages(row) >= 1 for row in rows))
    assert len([delay for delay in bench.delays if 0 < delay < 0.1]) >= 3
    await bench.collector.stop()


async def test_a_value_that_is_old_by_plan_is_known_to_be_so_until_it_is_read_anew(serve: Any, until: Until) -> None:
    server = await serve()
    bench = Bench(CollectorSettings(idle_interval=3600.0))
    row = bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) == 1)
    server.hold.clear()
    bench.table.picked((row,), time.monotonic())
    await until(lambda: bench.collector.state()["active"])
    assert bench.table.columns[SCRAPE_INTERVAL][row] == 3600.0
    server.hold.set()
    await until(lambda: bench.pages(row) >= 2)
    assert bench.table.columns[SCRAPE_INTERVAL][row] <= 0.15
    await bench.collector.stop()


async def test_a_slow_server_delays_nobody(serve: Any, until: Until) -> None:
    slow, quick = await serve(), await serve()
    slow.hold.clear()
    bench = Bench()
    slow_row, quick_row = bench.add(slow.port, "slow"), bench.add(quick.port, "quick")
    await bench.collector.start()
    await until(lambda: bench.pages(quick_row) >= 10)
    await until(lambda: bench.metrics.counts["datalayer_poll_errors_total", "page-source"] >= 2)  # timeouts
    assert bench.pages(slow_row) == 0
    assert bench.collector.state()["failing"] == 1
    slow.hold.set()
    await until(lambda: bench.pages(slow_row) >= 2)
    await bench.collector.stop()


async def test_a_dead_server_is_counted_and_comes_back(
    serve: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve()
    server.page(b"overloaded", status="503 Service Unavailable")
    bench = Bench()
    row = bench.add(server.port)
    with caplog.at_level("INFO", "epp.datalayer.collector"):
        await bench.collector.start()
        await until(lambda: bench.metrics.counts["datalayer_poll_errors_total", "page-source"] >= 3)
        assert bench.pages(row) == 0
        server.page(b"m 2\n")
        await until(lambda: bench.pages(row) >= 1)
    assert bench.table.attributes[row]["page"] == b"m 2\n"
    messages = [record.getMessage() for record in caplog.records]
    assert sum("status 503 instead of 200" in message for message in messages) == 1
    assert sum("answers again" in message for message in messages) == 1
    await bench.collector.stop()


async def test_one_bad_extractor_does_not_hurt_the_others(
    serve: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    server = await serve()
    bench = Bench(extractors=(BadExtractor,))
    row = bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 3)
    assert bench.metrics.counts["datalayer_extract_errors_total", "page-source", "bad-extractor"] >= 3
    assert sum("lacks what I need" in record.getMessage() for record in caplog.records) == 1
    assert caplog.records[0].exc_info is None
    await bench.collector.stop()


@pytest.mark.parametrize("error", [KeyError("oops"), SystemExit("a command in a library")])
async def test_a_bug_in_an_extractor_is_logged_with_its_traceback(
    error: BaseException, serve: Any, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BadExtractor, "error", error)
    server = await serve()
    bench = Bench(extractors=(BadExtractor,))
    row = bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 2)
    assert caplog.records[0].exc_info is not None
    await bench.collector.stop()


async def test_the_answer_of_a_gone_endpoint_is_dropped(serve: Any, until: Until) -> None:
    server, other = await serve(), await serve()
    server.hold.clear()
    other.page(b"other\n")
    bench = Bench(CollectorSettings(idle_interval=0.05))
    row = bench.add(server.port, "old")
    await bench.collector.start()
    await until(lambda: len(server.requests) == 1)
    bench.table.remove(f"127.0.0.1:{server.port}")
    assert bench.add(other.port, "new") == row
    server.hold.set()
    await until(lambda: bench.pages(row) >= 2)
    assert bench.table.attributes[row]["page"] == b"other\n"
    await bench.collector.stop()


async def test_a_late_result_is_recognised_by_its_generation(serve: Any) -> None:
    server = await serve()
    bench = Bench()
    row = bench.add(server.port)
    await bench.collector.start()
    lane = bench.collector._lanes[0]
    done = lane.clients[row]._done
    bench.table.remove(f"127.0.0.1:{server.port}")
    assert bench.add(server.port, "successor") == row
    lane.busy[row] = True
    done(ConnectionResetError("late"))
    assert lane.busy[row]
    assert lane.failures[row] == 0
    await bench.collector.stop()


async def test_an_endpoint_without_a_target_is_reported(serve: Any, until: Until) -> None:
    server = await serve()
    bench = Bench()
    bench.add(1, "mute", scrape="no")
    row = bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 2)
    assert bench.metrics.counts["datalayer_poll_errors_total", "page-source"] == 1
    bench.table.remove("127.0.0.1:1")
    await bench.collector.stop()


async def test_a_fixed_interval_is_kept_while_idle(serve: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageSource, "fixed", 0.02)
    server = await serve()
    bench = Bench(CollectorSettings(idle_interval=3600.0))
    row = bench.add(server.port)
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 3)
    assert np.isnan(bench.table.columns[SCRAPE_INTERVAL][row])
    await bench.collector.stop()


async def test_a_failing_tick_does_not_stop_the_collector(
    serve: Any, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    bench = Bench()
    row = bench.add(server.port)
    measure = bench.collector._measure
    failures = iter([RuntimeError("once")])

    def fail_once(now: float) -> None:
        for error in failures:
            raise error
        measure(now)

    monkeypatch.setattr(bench.collector, "_measure", fail_once)
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 1)
    assert any("failed at one tick" in record.getMessage() for record in caplog.records)
    await bench.collector.stop()


async def test_stop_while_connecting_and_waiting(serve: Any, until: Until) -> None:
    server = await serve()
    server.hold.clear()
    bench = Bench()
    bench.add(server.port)
    await bench.collector.start()
    await until(lambda: len(server.requests) == 1)
    bench.add(server.port + 1 if server.port < 65535 else 1, "next")
    await asyncio.sleep(0)
    await bench.collector.stop()
    await bench.collector.stop()
    assert bench.collector.state()["failing"] == 0


async def test_many_endpoints_are_started_bit_by_bit(serve: Any, until: Until) -> None:
    server = await serve()
    bench = Bench(CollectorSettings(idle_interval=3600.0, cpu_budget=100.0))
    rows = [bench.table.add(Endpoint(f"pod-{i}", f"127.0.0.{i + 1}", server.port)) for i in range(60)]
    await bench.collector.start()
    bench.collector._timer.cancel()  # type: ignore[union-attr]
    bench.collector._tick(time.monotonic() + 10.0)
    bench.collector._ticked = time.monotonic()
    first = int(bench.collector._lanes[0].busy.sum())
    assert 1 <= first < 60
    bench.collector._schedule(time.monotonic(), 0.0)
    await until(lambda: bench.collector.fetches >= 60)
    assert all(bench.collector._lanes[0].started[row] > 0 for row in rows)
    await bench.collector.stop()


async def test_endpoints_are_not_fetched_before_start_nor_after_stop(serve: Any) -> None:
    server = await serve()
    bench = Bench()
    bench.add(server.port)
    assert bench.collector.state()["intervalSeconds"] is None
    await bench.collector.start()
    await bench.collector.stop()
    bench.table.remove(f"127.0.0.1:{server.port}")
    bench.add(server.port)
    assert not bench.collector._lanes[0].clients


async def test_what_is_due_one_after_the_other_comes_together(serve: Any, until: Until) -> None:
    """Eight endpoints each 100 ms, begun at eight times: after a while one tick fetches them all."""
    servers = [await serve() for _ in range(8)]
    settings = CollectorSettings(refresh_interval=0.1, active_interval=0.1, hot_for=60.0, idle_after=60.0)
    bench = Bench(settings, cpu_clock=lambda: 0.0)
    await bench.collector.start()
    rows = []
    for index, server in enumerate(servers):
        rows.append(bench.add(server.port, f"pod-{index}"))
        bench.table.picked((rows[-1],), time.monotonic())
        await asyncio.sleep(0.02)

    def most_at_once() -> int:
        started = np.sort(bench.collector._lanes[0].started[rows])
        return max(int(np.count_nonzero((started >= at) & (started < at + 0.001))) for at in started)

    await until(lambda: bench.collector.fetches >= 80)
    await until(lambda: most_at_once() >= 6)
    assert all(bench.pages(row) >= 5 for row in rows)
    await bench.collector.stop()


async def test_a_page_that_takes_longer_than_the_interval_is_followed_by_the_next(serve: Any, until: Until) -> None:
    """When it comes at last, its row is due: not only when the fetch would have been given up."""
    server = await serve()
    bench = Bench(CollectorSettings(refresh_interval=0.05, active_interval=0.05, idle_after=600.0, timeout=300.0))
    row = bench.add(server.port)
    bench.table.picked((row,), time.monotonic())
    await bench.collector.start()
    await until(lambda: bench.pages(row) >= 1)
    server.hold.clear()
    asked = len(server.requests)
    await until(lambda: len(server.requests) > asked)
    await until(lambda: bool(bench.collector._lanes[0].due[row] > time.monotonic() + 100))
    server.hold.set()
    await until(lambda: bench.pages(row) >= 4)
    await bench.collector.stop()


async def test_a_row_without_a_page_may_be_picked(serve: Any, until: Until) -> None:
    server = await serve()
    bench = Bench()
    mute, row = bench.add(1, "mute", scrape="no"), bench.add(server.port)
    await bench.collector.start()
    for _ in range(5):
        bench.table.picked((mute, row), time.monotonic())
        seen = bench.pages(row)
        await until(partial(lambda least: bench.pages(row) >= least, seen + 2))
    assert bench.pages(mute) == 0
    await bench.collector.stop()


async def test_a_pick_does_not_hurry_a_server_that_fails_or_is_slow(serve: Any, until: Until) -> None:
    server, other = await serve(), await serve()
    server.page(b"overloaded", status="503 Service Unavailable")
    bench = Bench(CollectorSettings(refresh_interval=0.01, active_interval=30.0, idle_after=60.0, max_backoff=60.0))
    row, slow = bench.add(server.port), bench.add(other.port, "slow")
    await bench.collector.start()
    bench.table.picked((slow,), time.monotonic() - 1.0)  # active, but not hot
    lane = bench.collector._lanes[0]
    await until(lambda: bool(lane.failures[row] and bench.pages(slow)))
    lane.took[slow] = 5.0
    bench.collector._surveyed = float("-inf")
    bench.collector._tick(time.monotonic())
    due = lane.due.copy()
    bench.table.picked((row, slow), time.monotonic())
    assert lane.due[row] == due[row]
    assert 8.0 < lane.due[slow] - lane.started[slow] < 12.0
    await bench.collector.stop()
