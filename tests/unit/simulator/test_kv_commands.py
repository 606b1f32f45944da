"""`epp kv check` and `epp kv watch` before a simulated server: sound, and with each fault that people make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from epp.cli import main
from epp.demo.ports import free_ports

Check = Callable[..., Awaitable[tuple[int, dict[str, dict[str, str]]]]]


@asynccontextmanager
async def busy(stage: Any, server: Any) -> AsyncIterator[None]:
    """The server gets new prompts all the time."""

    async def ask() -> None:
        number = 0
        while True:
            number += 1
            prompt = [number * 50 + n for n in range(40)]
            await stage.post(server, "/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 1})
            await asyncio.sleep(0.01)

    task = asyncio.create_task(ask())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command beside the loop that serves; returns its exit status and its findings by code."""

    async def run(address: str, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
        line = ["kv", "check", address, "--output", "json", "--seconds", "10", *arguments]
        status = await asyncio.to_thread(main.main, line)
        return status, {finding["code"]: finding for finding in json.loads(capsys.readouterr().out)}

    return run


async def source(stage: Any, server: Any) -> tuple[str, str, str]:
    """Where it publishes, where it replays, and its API."""
    told = (await stage.get(server, "/kv_event_sources"))["0"]
    return told["endpoint"], told["replay_endpoint"], f"http://127.0.0.1:{server.port}"


async def test_a_sound_server(stage: Any, check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    server = (await stage.fleet()).servers[0]
    events, replay, api = await source(stage, server)
    async with busy(stage, server):
        status, found = await check(events, "--http", api, "--replay", replay, "--block-size", "8")
        assert status == 0
        assert {code for code, finding in found.items() if finding["level"] == "ok"} == {
            "publisher", "events", "block-size", "replay"
        }  # fmt: skip
        watch = ["kv", "watch", events, "--output", "json", "--count", "2", "--seconds", "20"]
        assert await asyncio.to_thread(main.main, watch) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["event"] == "BlockStored"
    assert lines[0]["block_size"] == 8
    assert len(lines[0]["hashes"]) == lines[0]["blocks"] == lines[0]["tokens"] // 8
    assert lines[0]["topic"].startswith("kv@127.0.0.1:")


async def test_another_block_size(stage: Any, check: Check) -> None:
    server = (await stage.fleet()).servers[0]
    events, _, api = await source(stage, server)
    status, found = await check(events, "--http", api, "--block-size", "16", "--seconds", "0.2")
    assert status == 1  # known from the metrics page, though the server is idle
    assert "8 tokens" in found["block-size"]["message"]
    assert "blockSizeTokens" in found["block-size"]["fix"]
    assert found["no-events"]["level"] == "warning"


async def test_another_topic(stage: Any, check: Check) -> None:
    server = (await stage.fleet(config={"topic": "events@{host}:{port}@{model}"})).servers[0]
    events, _, api = await source(stage, server)
    async with busy(stage, server):
        for arguments in (("--http", api), ()):
            status, found = await check(events, *arguments)
            assert status == 1
            assert "'kv@'" in found["wrong-topic"]["message"]
        status, found = await check(events, "--topic", "events@")
    assert (status, "wrong-topic" in found) == (0, False)


async def test_another_port(stage: Any, check: Check) -> None:
    server = (await stage.fleet()).servers[0]
    events, replay, api = await source(stage, server)
    (nobody,) = free_ports(1)
    status, found = await check(f"127.0.0.1:{nobody}", "--http", api)
    assert status == 1
    assert events.rpartition(":")[2] in found["wrong-port"]["fix"]
    assert "nothing-listens" in found
    status, found = await check(api.removeprefix("http://"))
    assert (status, set(found)) == (1, {"not-zmq"})
    status, found = await check(replay)
    assert (status, set(found)) == (1, {"replay-port"})


async def test_a_server_that_connects(stage: Any, check: Check) -> None:
    """Nobody listens where vLLM dials; a picker that binds there hears it."""
    (port,) = free_ports(1)
    server = (await stage.fleet(config={"endpoint": f"tcp://127.0.0.1:{port}"})).servers[0]
    _, _, api = await source(stage, server)
    async with busy(stage, server):
        status, found = await check(f"127.0.0.1:{port}", "--http", api)
        assert status == 1
        assert "zmqEndpoint" in found["nothing-listens"]["fix"]
        assert found["may-connect"]["level"] == "warning"
        status, found = await check(f"tcp://127.0.0.1:{port}", "--bind", "--http", api)
        assert (status, found["events"]["level"]) == (0, "ok")
    (port,) = free_ports(1)
    status, found = await check(f"tcp://127.0.0.1:{port}", "--bind", "--seconds", "0.2")
    assert (status, set(found)) == (1, {"nobody-connects"})


async def test_events_that_are_off(stage: Any, check: Check) -> None:
    server = (await stage.fleet(config={"enable_kv_cache_events": False})).servers[0]
    (nobody,) = free_ports(1)
    status, found = await check(f"127.0.0.1:{nobody}", "--http", f"http://127.0.0.1:{server.port}")
    assert status == 1
    assert "nothing-listens" in found
