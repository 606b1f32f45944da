"""A real redis-server for each test, and indexes of pickers over it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from benchmarks.redis_server import RedisServer
from epp.prefixcache.precise.hashing import BlockHasher
from epp.prefixcache.shared.index import SharedIndex
from epp.prefixcache.shared.server import Server
from epp.prefixcache.shared.settings import SharedSettings


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    """redis-py on its own, to see what is really there."""
    with Redis(port=server.port) as connected:
        yield connected


@pytest.fixture
async def connect(server: RedisServer) -> AsyncIterator[Callable[..., Awaitable[SharedIndex]]]:
    """One picker's index; `wait` False: do not wait for the server."""
    async with AsyncExitStack() as stack:

        async def make(*, wait: bool = True, seed: str = "", url: str = "", **settings: Any) -> SharedIndex:
            index = SharedIndex(
                Server(url or server.url, connections=18, timeout=0.3),
                BlockHasher(seed),
                SharedSettings(**{"budget": 5.0, **settings}),
                clock=asyncio.get_running_loop().time,
                rng=random.Random(1),
                log=logging.getLogger("epp.shared"),
                name="test",
            )
            index.start()
            stack.push_async_callback(index.stop)
            async with asyncio.timeout(30):
                while wait and not index.up:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0.01)
            return index

        yield make


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)

    return wait
