"""Simulated servers, a client, and a consumer of their KV events that remembers what every endpoint holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from epp.demo.ports import free_ports_in_a_row
from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored
from epp.kvevents.receiver import KVEventReceiver
from epp.kvevents.settings import Publisher, ReceiverSettings
from epp_simulator.engine import Engine
from epp_simulator.fleet import Fleet
from epp_simulator.options import SimOptions
from epp_simulator.server import SimulatedServer


class Ledger:
    """A sink: endpoint -> tier -> hashes it holds; `stored`: all events, in order."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, set[int]]] = {}
        self.stored: list[BlockStored] = []
        self.clears = 0

    def tier(self, endpoint: str, medium: str = "gpu") -> set[int]:
        return self.held.setdefault(endpoint, {}).setdefault(medium, set())

    def apply_many(self, batches: Any) -> None:
        for endpoint, events in batches:
            self.apply(endpoint, events)

    def apply(self, endpoint: str, events: Any) -> None:
        for event in events:
            match event:
                case BlockStored():
                    self.tier(endpoint, event.medium).update(event.block_hashes)
                    self.stored.append(event)
                case BlockRemoved():
                    self.tier(endpoint, event.medium).difference_update(event.block_hashes)
                case AllBlocksCleared():
                    self.held.pop(endpoint, None)
                    self.clears += 1

    def clear(self, endpoint: str) -> None:
        self.held.pop(endpoint, None)


class Stage:
    """Starts servers and receivers, and asks questions."""

    def __init__(self, stack: AsyncExitStack, session: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._session = session
        self.ledger = Ledger()
        self.receivers: list[KVEventReceiver] = []

    async def fleet(self, *, config: dict[str, Any] | None = None, **changes: Any) -> Fleet:
        """Servers that publish on free ports; `config`: keys of --kv-events-config."""
        events = {"enable_kv_cache_events": True, "endpoint": "tcp://*:0", "replay_endpoint": "tcp://*:0"}
        events |= {"topic": "kv@{host}:{port}@{model}"} | (config or {})
        base: dict[str, Any] = {"port": 0, "model": "tiny", "enable_kvcache": True, "block_size": 8}
        base |= {"kv_events_config": msgspec_json(events)}
        return await self._stack.enter_async_context(Fleet(SimOptions(**(base | changes))))

    def receiver(self, **settings: Any) -> KVEventReceiver:
        defaults = {"replay_cooldown": 0.1, "replay_backoff_limit": 0.5}
        receiver = KVEventReceiver(
            self.ledger,
            clock=time.monotonic,
            wall_clock=time.time,
            settings=ReceiverSettings(**(defaults | settings)),
        )
        receiver.start()
        self.receivers.append(receiver)
        return receiver

    async def follow(self, server: SimulatedServer, **settings: Any) -> KVEventReceiver:
        """A receiver that follows all ranks of a server, and is as current as it can be."""
        receiver = self.receiver(**settings)
        sources = await self.get(server, "/kv_event_sources")
        publishers = [
            Publisher(source["endpoint"], source["replay_endpoint"], int(rank)) for rank, source in sources.items()
        ]
        receiver.add(endpoint(server), publishers)
        # Without a replay port "synced" is true at once: it also has to be connected.
        await self.until(
            lambda: receiver.progress().ready and all(state.status == "live" for state in receiver.states())
        )
        return receiver

    async def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait for the condition; TimeoutError with what the receivers say."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{[receiver.states() for receiver in self.receivers]} {self.ledger.held}")
            await asyncio.sleep(0.005)

    async def same(self, server: SimulatedServer, medium: str = "GPU") -> None:
        """Wait until the ledger has for the server what its engines hold."""
        await self.until(
            lambda: (
                self.ledger.tier(endpoint(server), medium.lower())
                == set().union(*(numbers(engine, medium) for engine in server.engines))
            )
        )

    async def complete(
        self, server: SimulatedServer, prompt: Any, max_tokens: int = 1, *, headers: Any = None, **more: Any
    ) -> dict[str, Any]:
        """A completion, whole."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True} | more
        return await self.post(server, "/v1/completions", body, headers=headers)

    async def post(self, server: SimulatedServer, path: str, body: Any, *, headers: Any = None) -> Any:
        async with self._session.post(url(server, path), json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def get(self, server: SimulatedServer, path: str) -> Any:
        async with self._session.get(url(server, path)) as answer:
            assert answer.status == 200
            return await answer.json()

    @staticmethod
    def cached(answer: dict[str, Any]) -> int:
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    free_ports_in_a_row = staticmethod(free_ports_in_a_row)
    endpoint = staticmethod(lambda server: endpoint(server))
    numbers = staticmethod(lambda engine, medium="GPU": numbers(engine, medium))


def msgspec_json(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


def endpoint(server: SimulatedServer) -> str:
    return f"127.0.0.1:{server.port}"


def url(server: SimulatedServer, path: str) -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def numbers(engine: Engine, medium: str = "GPU") -> set[int]:
    """What an engine holds, as it says it in events."""
    return {int.from_bytes(digest[-8:], "big") for digest in engine.cache.digests(medium)}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack, aiohttp.ClientSession() as session:
        stage = Stage(stack, session)
        try:
            yield stage
        finally:
            for receiver in stage.receivers:
                receiver.stop()
