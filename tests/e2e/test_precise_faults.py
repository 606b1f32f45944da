"""The precise index in a gateway whose parts are killed without a word, or never stop talking: no request is lost."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.redis_server import RedisServer
from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import PickerProcess, Served
from epp.demo.ports import free_ports, free_ports_in_a_row
from epp.demo.processes import end

PUBLISHER = Path(__file__).with_name("publisher_process.py")
SERVERS = 3
INDEX_BYTES = 8 << 20
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: token-producer}
- type: precise-prefix-cache-producer
  parameters:
    speculativeIndexing: true
    maxIndexBytes: %d
    warmStartLimit: 10s
    indexerConfig: {kvBlockIndexConfig: {enableMetrics: true%s}}
    kvEventsConfig: {podDiscoveryConfig: {podLabelSelector: '', socketPort: %d, replaySocketPort: %d}}
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}
- {type: queue-scorer}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: prefix-cache-scorer, weight: 1}, {pluginRef: queue-scorer, weight: 1}]
"""


class Publishers:
    """One process per server; rank r publishes at `events` + r and replays at `replay` + r."""

    def __init__(self, modes: list[str]) -> None:
        self._modes = modes
        row = free_ports_in_a_row(2 * len(modes))
        self.events, self.replay = row, row + len(modes)
        self.processes: dict[int, asyncio.subprocess.Process] = {}

    async def start(self, rank: int) -> None:
        arguments = [str(PUBLISHER), str(self.events + rank), str(self.replay + rank), self._modes[rank]]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
        self.processes[rank] = process
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"

    async def kill(self, rank: int) -> None:
        self.processes[rank].kill()
        await self.processes[rank].wait()

    async def __aenter__(self) -> Publishers:
        for rank in range(len(self._modes)):
            await self.start(rank)
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self.processes.values():
            await end(process, 0.0)


class Clients:
    """Some clients that ask one after the other: prompts of token ids, which some have in common."""

    def __init__(self, client: aiohttp.ClientSession, url: str, *, patience: int = 1, stream: int = 0) -> None:
        self.answered = self.again = 0
        self.lost: list[str] = []
        self._client, self._url, self._patience, self._stream = client, url, patience, stream
        self._stop = False

    async def _ask(self, number: int) -> None:
        prompt = [number % 7 * 1000 + n for n in range(200)]
        headers = {"x-do-stream": str(self._stream), "x-do-gap": "0.01"} if self._stream else {}
        failed = ""
        for attempt in range(self._patience):
            if attempt:  # as SDKs do: 0.2 s, then twice as long each time
                self.again += 1
                await asyncio.sleep(min(0.1 * 2**attempt, 2.0))
            try:
                body = {"model": "m", "prompt": prompt, "max_tokens": 5}
                url = self._url + "/v1/completions"
                async with asyncio.timeout(30), self._client.post(url, json=body, headers=headers) as answer:
                    data = await answer.read()
                    whole = data.count(b"data: ") == self._stream + 2 if self._stream else b"usage" in data
                    if answer.status == 200 and whole:
                        self.answered += 1
                        return
                    failed = f"{answer.status} {data[:200]!r}"
            except aiohttp.ClientError as error:
                failed = repr(error)
        self.lost.append(failed)

    async def _go_on(self, number: int) -> None:
        while not self._stop:
            await self._ask(number)
            number += 1
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def asking(self, clients: int = 6) -> AsyncIterator[None]:
        """Ask until the block ends, then wait for the last answers."""
        tasks = [asyncio.create_task(self._go_on(number * 11)) for number in range(clients)]
        try:
            yield
        finally:
            self._stop = True
            await asyncio.gather(*tasks)

    async def more(self, count: int) -> None:
        """Wait until so many more have been answered."""
        wanted = self.answered + count
        await until(lambda: self.answered >= wanted, "answers")


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition; fails after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        assert loop.time() < deadline, f"after {seconds} s still no {what}"
        await asyncio.sleep(0.1)


async def metric(picker: PickerProcess, name: str) -> float:
    """Sum over the series of a metric."""
    page = await picker.metrics()
    return sum(float(value) for value in re.findall(rf"^(?:llm_d_epp_)?{name}\{{[^}}]*\}} (\S+)$", page, re.MULTILINE))


def reaches(picker: PickerProcess, name: str, value: float) -> Callable[[], Awaitable[bool]]:
    """Condition: a metric is at least this."""

    async def check() -> bool:
        return await metric(picker, name) >= value

    return check


def resident(picker: PickerProcess) -> int:
    """RSS in bytes."""
    status = Path(f"/proc/{picker.pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@asynccontextmanager
async def gateway(
    ports: list[int], publishers: Publishers, folder: Path, *, pickers: int = 1, redis: str = "", **options: Any
) -> AsyncIterator[tuple[list[PickerProcess], Envoy]]:
    """Pickers in precise mode over these servers, and an Envoy in front.

    With `redis` they share an index, and know no more of the servers than what these tell from now on.
    """
    served = [Served("127.0.0.1", port, rank=rank) for rank, port in enumerate(ports)]
    shared = f", redisConfig: {{address: '{redis}'}}" if redis else ""
    config = CONFIG % (INDEX_BYTES, shared, publishers.events, 0 if redis else publishers.replay)
    async with AsyncExitStack() as stack:
        running = []
        for number in range(pickers):
            own = folder / f"picker{number}"
            own.mkdir()
            picker = PickerProcess(own, served, config=config, tls=False)
            running.append(await stack.enter_async_context(picker))
        listen, admin = free_ports(2)
        described = Gateway(
            options.pop("flavour", "standalone"),
            listen,
            admin,
            running[0].grpc_port,
            upstreams=tuple(("127.0.0.1", port) for port in ports),
            picker_tls=False,
            pickers=tuple(picker.grpc_port for picker in running) if pickers > 1 else (),
            **options,
        )
        own = folder / "gateway"
        own.mkdir()
        envoy = await stack.enter_async_context(Envoy(described, own))
        for picker in running:
            await until(reaches(picker, "kv_event_publishers_connected", len(ports)), "connections to all publishers")
        yield running, envoy


async def test_a_publisher_is_killed_and_comes_back(stage: Any, tmp_path: Path) -> None:
    async with (
        stage(servers=SERVERS) as s,
        Publishers(["steady"] * SERVERS) as publishers,
        gateway(s.servers.ports, publishers, tmp_path) as ((picker,), envoy),
    ):
        clients = Clients(s.client, envoy.url)
        async with clients.asking():
            await until(reaches(picker, "prefix_index_stored_total", 1000), "blocks of all publishers")
            await clients.more(30)
            await publishers.kill(0)

            async def fewer() -> bool:
                return await metric(picker, "kv_event_publishers_connected") == SERVERS - 1

            await until(fewer, "notice of the dead publisher")
            await clients.more(30)
            await publishers.start(0)
            await until(reaches(picker, "kv_event_publishers_connected", SERVERS), "new connection")
            await until(reaches(picker, "kv_event_restarts_total", 1), "notice of the new process")
            stored = await metric(picker, "prefix_index_stored_total")
            await until(reaches(picker, "prefix_index_stored_total", stored + 500), "new blocks")
            await clients.more(30)
        assert clients.lost == []
        assert await metric(picker, "kv_event_lost_total") == 0


async def test_a_picker_is_killed_and_the_other_one_goes_on(stage: Any, tmp_path: Path) -> None:
    options = {"flavour": "light", "health_check": True, "pickers": 2}
    async with (
        stage(servers=SERVERS) as s,
        Publishers(["steady"] * SERVERS) as publishers,
        gateway(s.servers.ports, publishers, tmp_path, **options) as ((first, second), envoy),
    ):

        async def both() -> bool:
            return (await envoy.stats("cluster.picker.")).get("membership_healthy") == 2

        await until(both, "two healthy pickers")
        # A request whose picker dies under it ends with an error, and so do those sent there before Envoy has
        # noticed: the client asks again, as SDKs do.
        clients = Clients(s.client, envoy.url, patience=8, stream=30)
        async with clients.asking(12):
            await clients.more(30)
            assert first.process is not None
            first.process.send_signal(signal.SIGKILL)
            await first.process.wait()
            await clients.more(60)
            await first.start()  # a new one on the same port: it asks the publishers for what it missed
            await until(reaches(first, "prefix_index_stored_total", 1000), "the replay")
            await clients.more(60)
        assert clients.lost == []
        # Only a publisher that is starved for seconds may fail to replay; it is asked again later.
        if not await metric(first, "kv_event_replays_failed_total"):
            assert await metric(first, "kv_event_lost_total") == 0
        assert await metric(second, "kv_event_publishers_connected") == SERVERS


@pytest.mark.timeout(600)  # what it floods with is as fast as the machine
async def test_a_publisher_that_never_stops_costs_bounded_memory(stage: Any, tmp_path: Path) -> None:
    modes = ["endless", "steady", "steady"]
    async with (
        stage(servers=SERVERS) as s,
        Publishers(modes) as publishers,
        gateway(s.servers.ports, publishers, tmp_path) as ((picker,), envoy),
    ):
        clients = Clients(s.client, envoy.url)
        async with clients.asking(3):
            # The index is full many times over, and ZMQ's queue is, before the first look.
            await until(reaches(picker, "prefix_index_evicted_blocks_total", 500_000), "evictions", 240.0)
            before, asked = resident(picker), clients.answered
            more = reaches(picker, "prefix_index_evicted_blocks_total", 2_000_000)
            await until(more, "more evictions", 240.0)
            grown = resident(picker) - before
            assert clients.answered > asked + 20
        assert clients.lost == []
        assert grown < 24 << 20
        # A tier that comes when the index is full costs another 8 bytes of the rows that there are.
        assert await metric(picker, "prefix_indexer_bytes") <= INDEX_BYTES * 1.25
        # Who talks too much does not drown the others.
        state = await s.client.get(f"http://127.0.0.1:{picker.metrics_port}/debug/plugins/state")
        plugin = (await state.json())["plugins"]["precise-prefix-cache-producer"]
        quiet = [entry for entry in plugin["state"]["publishers"] if entry["rank"] != 0]
        assert [entry["lost"] for entry in quiet] == [0, 0]


async def test_redis_stalls_is_killed_and_comes_back(stage: Any, tmp_path: Path) -> None:
    async with (
        stage(servers=SERVERS) as s,
        Publishers(["steady"] * SERVERS) as publishers,
        RedisServer(tmp_path) as redis,
        gateway(s.servers.ports, publishers, tmp_path, redis=redis.url) as ((picker,), envoy),
    ):
        lookups, written = "prefix_index_shared_lookups_total", "prefix_index_shared_writes_total"

        async def alone() -> bool:
            return await metric(picker, "prefix_index_shared_up") == 0

        clients = Clients(s.client, envoy.url)
        async with clients.asking():
            await until(reaches(picker, "prefix_index_shared_up", 1), "connection to the shared index")
            await until(reaches(picker, written, 1000), "blocks in the shared index")
            await until(reaches(picker, lookups, 30), "lookups")
            redis.send(signal.SIGSTOP)
            await until(alone, "notice of the stalled server")
            await clients.more(60)
            redis.send(signal.SIGCONT)
            await until(reaches(picker, "prefix_index_shared_up", 1), "the server that goes on")
            await clients.more(30)
            await redis.kill()
            await until(alone, "notice of the dead server")
            await clients.more(60)
            stored = await metric(picker, "prefix_index_stored_total")
            await until(reaches(picker, "prefix_index_stored_total", stored + 500), "blocks in the local index")
            await redis.start()
            await until(reaches(picker, "prefix_index_shared_up", 1), "the new server")
            before, asked = await metric(picker, written), await metric(picker, lookups)
            await until(reaches(picker, written, before + 500), "blocks in the new server")
            await until(reaches(picker, lookups, asked + 30), "lookups in the new server")
            await clients.more(30)
        assert clients.lost == []
        # One lookup waited for no longer than its budget, and only a few did.
        page = await picker.metrics()
        late = re.findall(r'prefix_index_shared_lookups_total{[^}]*outcome="(?:late|failed|partial)"[^}]*} (\S+)', page)
        down = re.findall(r'prefix_index_shared_lookups_total{[^}]*outcome="down"[^}]*} (\S+)', page)
        assert 0 < sum(map(float, late)) < sum(map(float, down))
        assert await metric(picker, "prefix_index_shared_errors_total") >= 2
