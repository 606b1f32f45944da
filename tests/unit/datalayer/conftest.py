"""A model server stand-in on loopback that misbehaves on demand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest


@dataclass
class PageServer:
    """Answers every GET with `answer`; `hold` keeps answers back until it is set; `requests` are the heads it saw."""

    port: int = 0
    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nm 1\n"
    close_after: int = 10**9
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    server: asyncio.Server | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def page(self, body: bytes, status: str = "200 OK") -> None:
        self.answer = b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        try:
            for _ in range(self.close_after):
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                await self.hold.wait()
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def drop_connections(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        self.drop_connections()
        self.hold.set()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()


Serve = Callable[..., Awaitable[PageServer]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers: `server = await serve()`; they stop with the test."""
    servers: list[PageServer] = []

    async def start(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> PageServer:
        server = PageServer()
        server.hold.set()
        server.server = await asyncio.start_server(server.serve, host, 0, ssl=tls)
        server.port = server.server.sockets[0].getsockname()[1]
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Until it holds; the test's timeout is the limit."""
    while not condition():  # noqa: ASYNC110 - any condition, not only those that an event announces
        await asyncio.sleep(0.005)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    return wait_until
