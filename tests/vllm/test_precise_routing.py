"""The precise producer against real vLLM servers: what it predicts, what it gains, and what it survives."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import Gate, GateMaker
from tests.vllm.servers import ROOT, VllmServer, watched
from tests.vllm.workload import Asked, converse, sessions

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1500)]

SESSIONS, TURNS = 40, 8
RESULT = ROOT / "out" / "vllm.json"


class Predictions:
    """What the picker foretold, by request id: its list of the latest is short, so it is read every few requests."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.by_request: dict[str, dict[str, Any]] = {}

    async def read(self, done: list[Asked]) -> None:
        if len(done) % 10 == 0:
            await self.all()

    async def all(self) -> None:
        state = await self.gate.state()
        for prediction in state["selfCheck"]["recent"]:
            self.by_request[prediction["request"]] = prediction


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    for _ in range(int(seconds * 10)):
        if await condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError("it did not happen in time")


def note(name: str, figures: dict[str, Any]) -> None:
    """Keep what was measured, for the documents."""
    RESULT.parent.mkdir(exist_ok=True)
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**known, name: figures}, indent=1))


async def test_predicted_cached_tokens_are_the_engines(servers: list[VllmServer], gate: GateMaker) -> None:
    for server in servers:
        await server.reset()
    async with gate("precise") as made, watched(servers) as evictions:
        predictions = Predictions(made)
        done = await converse(made.url, sessions(SESSIONS), TURNS, after=predictions.read)
        await asyncio.sleep(0.5)
        await predictions.all()
    assert len(done) == SESSIONS * TURNS
    assert [asked for asked in done if asked.cached is None] == []
    wrong: list[dict[str, Any]] = []
    unknown: list[Asked] = []
    quiet = exact = 0
    for asked in done:
        prediction = predictions.by_request.get(asked.id)
        if prediction is None:  # a server that never reported a hit may be one that does not report them
            unknown.append(asked)
            continue
        assert prediction["actual"] == asked.cached
        evicting = evictions.during(prediction["endpoint"], asked.began, asked.ended)
        equal = prediction["predicted"] == asked.cached
        quiet += not evicting
        exact += equal and not evicting
        if not equal:
            wrong.append({**asdict(asked), **prediction, "evicting": evicting})
    note(
        "prediction",
        {
            "requests": len(done),
            "not_compared": len(unknown),
            "without_eviction": quiet,
            "exact_of_these": exact,
            "exact_of_all": len(done) - len(unknown) - len(wrong),
            "mismatches": wrong,
        },
    )
    assert len(done) - len(unknown) >= 300
    assert all(asked.cached == 0 for asked in unknown)
    assert sum(map(len, evictions.seen.values())) > 50, "the caches were never full: nothing was shown"
    assert quiet >= 100
    assert exact >= 0.99 * quiet, wrong


async def test_more_hits_than_random_and_approximate_routing(servers: list[VllmServer], gate: GateMaker) -> None:
    hits: dict[str, int] = {}
    total = 0
    # As llm-d's guide has it: requests that come together keep together before the first one's events are there.
    for name, kind in (("random", "random"), ("approximate", "approximate"), ("precise", "speculative")):
        for server in servers:
            await server.reset()
        async with gate(kind) as made:
            done = await converse(made.url, sessions(SESSIONS), TURNS, concurrency=3)
        assert all(asked.cached is not None for asked in done)
        hits[name] = sum(asked.cached or 0 for asked in done)
        total = sum(asked.prompt_tokens for asked in done)
    note("hit_tokens", {**hits, "prompt_tokens": total, "requests": SESSIONS * TURNS})
    assert hits["precise"] >= 1.3 * hits["random"], hits
    # One picker that has seen every request knows as much as the servers tell: which of the two is ahead is chance, by
    # the order in which system prompts met servers.
    assert hits["precise"] >= 0.95 * hits["approximate"], hits


async def test_more_hits_than_approximate_routing_when_the_picker_is_new(
    servers: list[VllmServer], gate: GateMaker
) -> None:
    """A second replica, or a restart: the servers still hold what the approximate index has never heard of."""
    hits: dict[str, int] = {}
    for kind in ("approximate", "precise"):
        for server in servers:
            await server.reset()
        async with gate(kind) as made:
            clients = sessions(SESSIONS)
            before = await converse(made.url, clients, 3, concurrency=3)
            await made.picker.stop()
            await made.picker.start()
            after = await converse(made.url, clients, 5, concurrency=3)
        assert all(asked.cached is not None for asked in (*before, *after))
        hits[kind] = sum(asked.cached or 0 for asked in after)
    note("hit_tokens_of_a_new_picker", hits)
    assert hits["precise"] >= hits["approximate"], hits


async def test_a_server_that_is_killed_and_comes_back(
    servers: list[VllmServer], gate: GateMaker, tmp_path: Path
) -> None:
    """While it is away it is out of the pool, as a pod that is not ready; afterwards nothing is believed of it."""
    async with gate("precise") as made:
        before = await converse(made.url, sessions(8, 1), 3)
        assert all(asked.cached is not None for asked in before)
        listed = made.picker.endpoints_path.read_text()
        victim = servers[1]
        made.picker.set_endpoints([servers[0].served])
        await asyncio.sleep(1.0)
        victim.kill()
        during = await converse(made.url, sessions(8, 2), 3)
        assert all(asked.cached is not None for asked in during)
        await victim.stop()
        await victim.start()
        await victim.ready()
        made.picker.endpoints_path.write_text(listed)

        async def follows() -> bool:
            publishers = (await made.state())["publishers"]
            return sorted(p["endpoint"] for p in publishers if p["status"] == "live") == sorted(
                server.address for server in servers
            )

        await until(follows)
        predictions = Predictions(made)
        after = await converse(made.url, sessions(12, 3), 3, after=predictions.read)
        await asyncio.sleep(0.5)
        await predictions.all()
    assert all(asked.cached is not None for asked in after)
    there = [predictions.by_request[asked.id] for asked in after]
    assert {prediction["endpoint"] for prediction in there} == {server.address for server in servers}
    wrong = [p for p in there if p["predicted"] != p["actual"]]
    note("server_restart", {"requests": len(there), "wrong": wrong})
    assert len(wrong) <= 0.01 * len(there) + 1, wrong


async def test_a_picker_that_is_killed_catches_up(servers: list[VllmServer], gate: GateMaker) -> None:
    async with gate("precise") as made:
        first = await converse(made.url, sessions(10, 4), 3)
        held = (await made.state())["index"]["blocks"]
        assert held > 0
        os.kill(made.picker.pid, signal.SIGKILL)
        await made.picker.stop()
        await made.picker.start()
        state = await made.state()
        assert state["warmStart"]["synced"] == len(servers)
        assert state["index"]["blocks"] == held
        predictions = Predictions(made)
        again = await converse(made.url, sessions(10, 4), 3, after=predictions.read)
        await asyncio.sleep(0.5)
        await predictions.all()
    assert all(asked.cached is not None for asked in (*first, *again))
    there = [predictions.by_request[asked.id] for asked in again]
    assert sum(p["predicted"] for p in there) > 0
    wrong = [p for p in there if p["predicted"] != p["actual"]]
    note("picker_restart", {"blocks": held, "requests": len(there), "wrong": wrong})
    assert len(wrong) <= 0.01 * len(there) + 1, wrong
