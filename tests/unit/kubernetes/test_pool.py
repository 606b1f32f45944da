"""The pool and its pods, from an API server over real HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from epp.api.endpoints import EndpointTable
from epp.kubernetes import reflector
from epp.kubernetes.connection import ApiConnection, connect
from epp.kubernetes.pool import PoolWatcher, SelectedPods
from tests.kubernetes.api_server import PODS, POOLS, ApiServer, pod, pool
from tests.waiting import until

Follow = Callable[..., Any]


class Bench:
    """Watchers over one server."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.table = EndpointTable()
        self._folder = folder
        self._connection: ApiConnection | None = None
        self._watchers: list[Any] = []

    async def connection(self, token_file: str = "") -> ApiConnection:
        if self._connection is None:
            path = self._folder / "kubeconfig"
            document = json.loads(self.server.kubeconfig())
            document["users"][0]["user"] = {"tokenFile": token_file} if token_file else {}
            path.write_text(json.dumps(document))
            self._connection = await connect({"KUBECONFIG": str(path)})
        return self._connection

    async def pool(self, name: str = "pool", **more: Any) -> PoolWatcher:
        return await self._started(
            PoolWatcher(
                await self.connection(), self.table, "ns", name, clock=time.monotonic, rng=random.Random(1), **more
            )
        )

    async def selected(self, selector: str, *ports: int) -> SelectedPods:
        return await self._started(
            SelectedPods(
                await self.connection(),
                self.table,
                "ns",
                selector,
                ports,
                clock=time.monotonic,
                rng=random.Random(1),
            )
        )

    async def _started(self, watcher: Any) -> Any:
        self._watchers.append(watcher)
        await watcher.start()
        return watcher

    def addresses(self) -> set[str]:
        return {endpoint.host_port for endpoint in self.table.all(0.0)}

    async def until(self, *addresses: str) -> None:
        await until(lambda: self.addresses() == set(addresses), lambda: self.addresses())

    async def close(self) -> None:
        for watcher in self._watchers:
            await watcher.stop()
        if self._connection is not None:
            await self._connection.close()


@pytest.fixture
async def bench(server: ApiServer, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(server, tmp_path)
    yield made
    await made.close()


async def test_objects_in_any_order_become_endpoints(server: ApiServer, bench: Bench) -> None:
    watcher = await bench.pool()
    server.put(PODS, pod("a", "10.0.0.1"))
    server.put(PODS, pod("other", "10.0.0.9", labels={"app": "else"}))
    await asyncio.sleep(0.05)
    assert not watcher.synced
    server.put(POOLS, pool("pool", 8000, 8001))
    await bench.until("10.0.0.1:8000", "10.0.0.1:8001")
    assert watcher.synced
    server.put(PODS, pod("b", "fd00::2"))
    await bench.until("10.0.0.1:8000", "10.0.0.1:8001", "[fd00::2]:8000", "[fd00::2]:8001")
    row = bench.table.row_of("[fd00::2]:8001")
    assert row is not None
    endpoint = bench.table.endpoints[row]
    assert endpoint is not None
    assert (endpoint.name, endpoint.pod, endpoint.rank, endpoint.namespace) == ("b-rank-1", "b", 1, "ns")
    assert endpoint.labels == {"app": "vllm"}


async def test_what_happens_to_a_pod(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    await bench.pool()
    await bench.until("10.0.0.1:8000")
    server.put(PODS, pod("starting", "", ready=False))
    server.put(PODS, pod("b", "10.0.0.2", ready=False))
    server.put(PODS, pod("c", "10.0.0.3"))
    await bench.until("10.0.0.1:8000", "10.0.0.3:8000")
    server.put(PODS, pod("b", "10.0.0.2"))
    server.put(PODS, pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z"))  # terminating: it drains
    await bench.until("10.0.0.2:8000", "10.0.0.3:8000")
    server.delete(PODS, "a")
    server.put(PODS, pod("c", "10.0.0.3", labels={"app": "moved"}))
    await bench.until("10.0.0.2:8000")
    server.put(PODS, pod("d", "10.0.0.2"))  # the address has a new pod before the old one's end is told
    await until(lambda: next(iter(bench.table.all(0.0))).pod == "d")
    server.delete(PODS, "b")
    server.put(PODS, pod("e", "10.0.0.5"))
    await bench.until("10.0.0.2:8000", "10.0.0.5:8000")


async def test_active_ports(server: ApiServer, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    server.put(POOLS, pool("pool", 8000, 8001, 8002))
    server.put(PODS, pod("a", "10.0.0.1", annotations={"llm-d.ai/active-ports": "8000, 8002,9999"}))
    legacy = {"inference.networking.k8s.io/active-ports": "8001"}
    server.put(PODS, pod("b", "10.0.0.2", annotations=legacy))
    server.put(PODS, pod("c", "10.0.0.3", annotations={"llm-d.ai/active-ports": "all"}))
    server.put(PODS, pod("d", "10.0.0.4", annotations={"llm-d.ai/active-ports": ""}))
    await bench.pool()
    await bench.until(
        "10.0.0.1:8000", "10.0.0.1:8002", "10.0.0.2:8001", "10.0.0.3:8000", "10.0.0.3:8001", "10.0.0.3:8002"
    )
    assert "no list of ports" in caplog.text
    assert {e.rank for e in bench.table.all(0.0) if e.pod == "a"} == {0, 2}


async def test_changes_of_the_pool(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    server.put(PODS, pod("b", "10.0.0.2", labels={"app": "vllm", "v": "2"}))
    watcher = await bench.pool()
    await bench.until("10.0.0.1:8000", "10.0.0.2:8000")
    row = bench.table.row_of("10.0.0.2:8000")
    server.put(POOLS, pool("pool", 8000, 8001))
    await bench.until("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.1:8001", "10.0.0.2:8001")
    server.put(POOLS, pool("pool", 8000, labels={"v": "2"}))
    await bench.until("10.0.0.2:8000")
    assert bench.table.row_of("10.0.0.2:8000") == row  # with all that was measured of it
    server.put(POOLS, pool("another", 9000))
    server.put(POOLS, {"metadata": {"name": "pool"}, "spec": {"selector": {}, "targetPorts": []}})
    server.delete(POOLS, "another")
    await asyncio.sleep(0.1)
    assert bench.addresses() == {"10.0.0.2:8000"}
    server.delete(POOLS, "pool")
    await bench.until()
    assert not watcher.synced
    server.put(POOLS, pool("pool", 8000))
    await bench.until("10.0.0.1:8000", "10.0.0.2:8000")


async def test_the_older_group(server: ApiServer, bench: Bench) -> None:
    pools = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/{}/inferencepools"
    spec = {"selector": {"app": "vllm"}, "targetPortNumber": 8200}
    server.put(pools, {"metadata": {"name": "pool"}, "spec": spec})
    server.put(PODS, pod("a", "10.0.0.1"))
    await bench.pool(group="inference.networking.x-k8s.io")
    await bench.until("10.0.0.1:8200")


async def test_a_selector_without_a_pool(server: ApiServer, bench: Bench) -> None:
    server.put(PODS, pod("a", "10.0.0.1", labels={"app": "x", "tier": "gpu"}))
    server.put(PODS, pod("b", "10.0.0.2", labels={"app": "x"}))
    watcher = await bench.selected("app=x,tier in (gpu, tpu)", 8000, 8001)
    await bench.until("10.0.0.1:8000", "10.0.0.1:8001")
    assert watcher.synced
    assert watcher.age < 60
    assert (watcher.lists, watcher.unreadable) == (1, 0)
    server.put(PODS, pod("b", "10.0.0.2", labels={"app": "x", "tier": "tpu"}))  # labels change
    await bench.until("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8000", "10.0.0.2:8001")
    server.put(PODS, pod("a", "10.0.0.1", labels={"app": "x"}))
    await bench.until("10.0.0.2:8000", "10.0.0.2:8001")


async def test_many_pods_in_pages(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    for number in range(5000):
        server.put(PODS, pod(f"p{number}", f"10.1.{number // 250}.{number % 250}"))
    await bench.pool()
    await until(lambda: len(bench.table) == 5000, lambda: len(bench.table))
    assert sum("continue=" in request for request in server.requests) == 5000 / reflector.PAGE - 1
    server.put(PODS, pod("p4999", "10.2.0.1"))
    await until(lambda: "10.2.0.1:8000" in bench.addresses())


async def test_a_page_that_has_expired_begins_the_list_anew(server: ApiServer, bench: Bench) -> None:
    server.page = 100
    server.put(POOLS, pool("pool", 8000))
    for number in range(300):
        server.put(PODS, pod(f"p{number:03}", f"10.1.{number // 250}.{number % 250}"))
    server.delay = 0.05
    await bench.pool()
    await until(lambda: any("continue=" in request for request in server.requests))
    assert len(bench.table) == 0  # never half a list
    server.put(PODS, pod("p300", "10.2.0.1"))
    server.delete(PODS, "p000")
    server.compact()
    await until(lambda: len(bench.table) == 300, lambda: len(bench.table))
    assert "10.2.0.1:8000" in bench.addresses()
    assert "10.1.0.0:8000" not in bench.addresses()


@pytest.mark.parametrize("watched", [False, True])
async def test_an_object_that_cannot_be_read_keeps_no_other_away(
    server: ApiServer, bench: Bench, caplog: pytest.LogCaptureFixture, watched: bool
) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    server.put(PODS, pod("c", "10.0.0.3"))
    if watched:
        watcher = await bench.pool()
        await bench.until("10.0.0.1:8000", "10.0.0.3:8000")
    for name in ("b", "c"):
        strange = pod(name, "10.0.0.9")
        strange["status"]["podIP"] = 5
        server.put(PODS, strange)
    server.put(PODS, pod("d", "10.0.0.4"))
    if watched:
        await bench.until("10.0.0.1:8000", "10.0.0.3:8000", "10.0.0.4:8000")  # what was known of it stays
        assert watcher.lists == 2  # of the pool, and of its pods
    else:
        watcher = await bench.pool()
        await bench.until("10.0.0.1:8000", "10.0.0.4:8000")
    assert watcher.unreadable == 2
    assert caplog.text.count("an object is left out, it cannot be read: Expected `str`, got `int`") == 1
    server.put(PODS, pod("b", "10.0.0.2"))
    server.put(PODS, pod("c", "10.0.0.3"))
    await bench.until(*(f"10.0.0.{number}:8000" for number in range(1, 5)))


async def test_a_pool_that_cannot_be_read_stays_as_it_was(
    server: ApiServer, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    watcher = await bench.pool()
    await bench.until("10.0.0.1:8000")
    for strange in ({"targetPorts": [{"number": "http"}]}, {"targetPorts": []}, {"selector": {"matchLabels": {}}}):
        server.put(POOLS, pool("pool", 8000, **strange))
        await asyncio.sleep(0.05)
        server.compact()  # it is listed again, too
        server.drop()
        server.put(PODS, pod("a", "10.0.0.1"))
        await asyncio.sleep(0.4)
        assert bench.addresses() == {"10.0.0.1:8000"}
    assert watcher.unreadable > 0
    assert "has no selector or no ports: left as it was" in caplog.text
    assert "InferencePool ns/pool is gone" not in caplog.text
    server.put(POOLS, pool("pool", 8001))
    await bench.until("10.0.0.1:8001")


async def test_addresses_of_two_families(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    both = pod("a", "10.0.0.1")
    both["status"]["podIPs"] = [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]
    server.put(PODS, both)
    other = pod("b", "fd00::2")
    other["status"]["podIPs"] = [{"ip": "fd00::2"}, {"ip": "10.0.0.2"}]
    server.put(PODS, other)
    listed = pod("c", "")
    listed["status"]["podIPs"] = [{"ip": "fd00::3"}]
    server.put(PODS, listed)
    await bench.pool()
    await bench.until("10.0.0.1:8000", "[fd00::2]:8000", "[fd00::3]:8000")


async def serves_on(server: ApiServer, bench: Bench, number: int) -> None:
    """After whatever was done: the old endpoints are there, and a new one comes."""
    assert "10.0.0.1:8000" in bench.addresses()
    server.put(PODS, pod(f"n{number}", f"10.0.1.{number}"))
    await until(lambda: f"10.0.1.{number}:8000" in bench.addresses(), lambda: server.requests[-10:])
    assert "10.0.0.1:8000" in bench.addresses()


async def test_faults(server: ApiServer, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoints stay through all of it, and changes made meanwhile are caught up with."""
    monkeypatch.setattr(reflector, "_LONGEST_PAUSE", 0.3)
    emptied: list[str] = []
    bench.table.on_removed(lambda _row, endpoint: emptied.append(endpoint.host_port))
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    watcher = await bench.pool()
    await bench.until("10.0.0.1:8000")

    server.drop()  # connections break
    await serves_on(server, bench, 1)

    server.repeat_events = True  # everything twice, and once too late
    await serves_on(server, bench, 2)
    server.put(PODS, pod("n2", "10.0.1.2", ready=False))
    await until(lambda: "10.0.1.2:8000" not in bench.addresses())
    server.repeat_events = False
    await asyncio.sleep(0.1)
    assert "10.0.1.2:8000" not in bench.addresses()

    for in_stream in (True, False):  # the version is too old
        server.gone_in_stream = in_stream
        lists = watcher.lists
        server.put(PODS, pod("z", "10.0.9.9", ready=False))
        await asyncio.sleep(0.05)
        server.version += 10
        server.put(PODS, pod("during", "10.0.2.1"))
        server.compact()
        server.drop()
        await serves_on(server, bench, 3 + in_stream)
        await until(lambda before=lists: watcher.lists > before or "10.0.2.1:8000" in bench.addresses())

    for status in (429, 500, 503):  # it is overloaded
        server.status = status
        server.drop()
        await asyncio.sleep(0.3)
        assert "10.0.0.1:8000" in bench.addresses()
        server.status = 0
        await serves_on(server, bench, status % 100 + 10)

    await server.stop()  # it is away, and comes back with another state
    await asyncio.sleep(0.5)
    assert "10.0.0.1:8000" in bench.addresses()
    server.put(PODS, pod("while-away", "10.0.3.1"))
    server.delete(PODS, "n1")
    server.compact()
    await server.start()
    await until(lambda: "10.0.3.1:8000" in bench.addresses() and "10.0.1.1:8000" not in bench.addresses())
    assert watcher.age < 5.0
    assert "10.0.0.1:8000" not in emptied
    assert set(emptied) == {"10.0.1.2:8000", "10.0.1.1:8000"}


async def test_events_in_the_wrong_order(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    await bench.pool()
    await bench.until("10.0.0.1:8000")
    server.swap_events = True
    server.put(PODS, pod("b", "10.0.0.2"))
    server.put(PODS, pod("c", "10.0.0.3"))
    server.put(PODS, pod("b", "10.0.0.2", ready=False))
    server.put(PODS, pod("d", "10.0.0.4"))
    server.delete(PODS, "d")  # its end is told before its beginning
    server.put(PODS, pod("e", "10.0.0.5"))
    await bench.until("10.0.0.1:8000", "10.0.0.3:8000", "10.0.0.5:8000")
    await asyncio.sleep(0.1)
    assert bench.addresses() == {"10.0.0.1:8000", "10.0.0.3:8000", "10.0.0.5:8000"}


async def test_a_server_that_has_not_found_its_kinds_yet_empties_nothing(
    server: ApiServer, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "_LONGEST_PAUSE", 0.2)
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    watcher = await bench.pool()
    await bench.until("10.0.0.1:8000")
    server.hidden, server.forbidden = {POOLS}, {PODS}
    server.compact()
    server.drop()
    asked = len(server.requests)
    await until(lambda: len(server.requests) > asked + 4)
    assert bench.addresses() == {"10.0.0.1:8000"}
    assert watcher.synced
    server.hidden, server.forbidden = set(), set()
    server.put(PODS, pod("b", "10.0.0.2"))
    await bench.until("10.0.0.1:8000", "10.0.0.2:8000")


async def test_a_server_restored_from_a_backup(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    server.put(PODS, pod("b", "10.0.0.2"))
    await bench.pool()
    await bench.until("10.0.0.1:8000", "10.0.0.2:8000")
    await server.stop()
    server.version = 50
    server.log.clear()
    server.objects[PODS.format("ns")].clear()
    server.put(PODS, pod("a", "10.0.0.1"))
    server.put(POOLS, pool("pool", 8000))
    await server.start()
    await bench.until("10.0.0.1:8000")
    server.put(PODS, pod("c", "10.0.0.3"))
    await bench.until("10.0.0.1:8000", "10.0.0.3:8000")


async def test_another_selector_keeps_the_pool_known(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1", labels={"app": "vllm", "v": "2"}))
    watcher = await bench.pool()
    await bench.until("10.0.0.1:8000")
    server.delay = 0.3
    lists = watcher.lists
    server.put(POOLS, pool("pool", 8000, labels={"v": "2"}))
    for _ in range(500):
        assert watcher.synced
        assert bench.addresses() == {"10.0.0.1:8000"}
        if any("v%3D2" in request or "v=2" in request for request in server.requests) and watcher.lists >= lists:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError(server.requests[-5:])


async def test_a_token_that_expires_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    server.tokens = {"first": "me"}
    bench = Bench(server, tmp_path)
    server.put(POOLS, pool("pool", 8000))
    server.put(PODS, pod("a", "10.0.0.1"))
    (tmp_path / "token").write_text("first")
    await bench.connection("token")
    await bench.pool()
    await bench.until("10.0.0.1:8000")
    server.tokens = {"second": "me"}
    server.drop()
    await asyncio.sleep(0.3)
    assert bench.addresses() == {"10.0.0.1:8000"}
    (tmp_path / "token").write_text("second")
    server.put(PODS, pod("b", "10.0.0.2"))
    await bench.until("10.0.0.1:8000", "10.0.0.2:8000")
    await bench.close()


async def test_a_stream_of_changes_leaves_nothing_behind(server: ApiServer, bench: Bench) -> None:
    server.put(POOLS, pool("pool", 8000))
    watcher = await bench.pool()
    rng = random.Random(4)
    there: dict[str, str] = {}
    for number in range(600):
        name = f"p{rng.randrange(60)}"
        if name in there and rng.random() < 0.4:
            server.delete(PODS, name)
            del there[name]
        else:
            there.setdefault(name, f"10.5.{number // 250}.{number % 250}")
            server.put(PODS, pod(name, there[name], ready=rng.random() < 0.8))
        if number % 50 == 0:
            server.drop()
            await asyncio.sleep(0.05)
    ready = {
        f"{obj['status']['podIP']}:8000"
        for obj in server.objects[PODS.format("ns")].values()
        if obj["status"]["conditions"][0]["status"] == "True"
    }
    await bench.until(*ready)
    assert watcher.endpoints.pods == len(there)
    assert len(watcher.endpoints._owner) == len(ready)
