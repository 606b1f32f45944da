"""Publishers with real sockets, and a sink that remembers what every endpoint holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import zmq

from epp.kvevents.events import BlockRemoved, BlockStored
from epp.kvevents.receiver import KVEventReceiver
from epp.kvevents.settings import Publisher, ReceiverSettings


class Ledger:
    """A sink: endpoint -> hashes it holds."""

    def __init__(self) -> None:
        self.held: dict[str, set[int]] = {}
        self.doubted: set[int] = set()  # hashes that were stored by events that may be no further copies
        self.cleared: list[str] = []
        self.applied = 0
        self.blocks = 0

    def apply_many(self, batches: Any) -> None:
        for endpoint, events in batches:
            self.apply(endpoint, events)

    def apply(self, endpoint: str, events: Any) -> None:
        held = self.held.setdefault(endpoint, set())
        self.applied += len(events)
        for event in events:
            if isinstance(event, BlockStored):
                held.update(event.block_hashes)
                self.blocks += len(event.block_hashes)
                if event.again:
                    self.doubted.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                held.difference_update(event.block_hashes)
            else:
                held.clear()

    def clear(self, endpoint: str) -> None:
        self.held.pop(endpoint, None)
        self.cleared.append(endpoint)


class Server:
    """Publishes as vLLM does; what it sends can be lost, and it can start anew on the same ports."""

    def __init__(self, context: zmq.Context, *, replay: bool = True, topic_frame: bool = True, buffer: int = 10_000):
        self.context, self.topic_frame, self.buffer_size = context, topic_frame, buffer
        self.pub = context.socket(zmq.PUB)
        self.port = self.pub.bind_to_random_port("tcp://127.0.0.1")
        self.router = context.socket(zmq.ROUTER) if replay else None
        self.replay_port = self.router.bind_to_random_port("tcp://127.0.0.1") if self.router else 0
        self.topic = b"kv@10.0.0.1:8000@m"
        self.rank = 0
        self.requests: list[int] = []
        self.mute = False
        self.omit: set[int] = set()  # answers that are lost once
        self.started = 0
        self.anew()

    def anew(self) -> None:
        """A new process: its cache is empty and it counts from 0."""
        self.seq, self.held, self.kept = 0, set[int](), list[tuple[int, bytes]]()
        self.started += 1

    @property
    def publisher(self) -> Publisher:
        replay = f"tcp://127.0.0.1:{self.replay_port}" if self.router else None
        return Publisher(f"tcp://127.0.0.1:{self.port}", replay, self.rank)

    def publish(self, *, store: list[int] | None = None, remove: list[int] | None = None, lost: bool = False) -> None:
        events: list[dict[str, Any]] = []
        if remove:
            events.append({"type": "BlockRemoved", "block_hashes": remove})
            self.held.difference_update(remove)
        if store:
            events.append({"type": "BlockStored", "block_hashes": store, "token_ids": store, "block_size": 1})
            self.held.update(store)
        self.send(msgspec.msgpack.encode([time.time(), events, self.rank]), lost=lost)

    def clear(self) -> None:
        self.held.clear()
        self.send(msgspec.msgpack.encode([time.time(), [{"type": "AllBlocksCleared"}], self.rank]))

    def send(self, payload: bytes, *, lost: bool = False) -> None:
        self.kept = [*self.kept, (self.seq, payload)][-self.buffer_size :]
        if not lost:
            self.pub.send_multipart([self.topic, self.seq.to_bytes(8, "big"), payload])
        self.seq += 1

    def answer(self) -> None:
        """Answer the replay requests that wait."""
        while self.router is not None and self.router.poll(0):
            client, _, start = self.router.recv_multipart()
            self.requests.append(int.from_bytes(start, "big"))
            if self.mute:
                continue
            topic = [self.topic] if self.topic_frame else []
            for seq, payload in self.kept:
                if seq >= self.requests[-1] and seq not in self.omit:
                    self.router.send_multipart([client, b"", *topic, seq.to_bytes(8, "big"), payload])
            self.omit.clear()
            self.router.send_multipart([client, b"", *([b""] if topic else []), b"\xff" * 8, b""])

    def close(self) -> None:
        self.pub.close(0)
        if self.router is not None:
            self.router.close(0)


class Stage:
    """Servers, a receiver and its ledger."""

    def __init__(self, context: zmq.Context) -> None:
        self.context = context
        self.ledger = Ledger()
        self.servers: list[Server] = []
        self.receivers: list[KVEventReceiver] = []

    def server(self, **options: Any) -> Server:
        self.servers.append(Server(self.context, **options))
        return self.servers[-1]

    def receiver(self, *, resolve: Any = None, sink: Any = None, **settings: Any) -> KVEventReceiver:
        receiver = KVEventReceiver(
            sink or self.ledger,
            clock=time.monotonic,
            wall_clock=time.time,
            settings=ReceiverSettings(**{"replay_cooldown": 0.1, "replay_backoff_limit": 0.5, **settings}),
            resolve=resolve,
        )
        receiver.start()
        self.receivers.append(receiver)
        return receiver

    async def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Answer replays until the condition holds; TimeoutError with what the receivers say otherwise."""
        deadline = time.monotonic() + seconds
        while not condition():
            for server in self.servers:
                server.answer()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{[receiver.states() for receiver in self.receivers]} {self.ledger.held}")
            await asyncio.sleep(0.005)

    async def follow(self, server: Server, endpoint: str = "10.0.0.1:8000", **settings: Any) -> KVEventReceiver:
        """A receiver that follows the server and hears it."""
        receiver = self.receiver(**settings)
        receiver.add(endpoint, [server.publisher])
        await self.until(lambda: receiver.progress().ready and receiver.stats().connected == 1)
        await self.heard(server, receiver)
        return receiver

    async def heard(self, server: Server, receiver: KVEventReceiver) -> None:
        """The subscription has reached the publisher: a message came through."""
        before = receiver.stats().messages
        while receiver.stats().messages == before:
            server.publish()
            with suppress(TimeoutError):
                await self.until(lambda: receiver.stats().messages > before, 0.1)


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    with zmq.Context() as context:
        context.linger = 0
        yield context


@pytest.fixture
async def stage(context: zmq.Context) -> AsyncIterator[Stage]:
    stage = Stage(context)
    yield stage
    for receiver in stage.receivers:
        receiver.stop()
    for server in stage.servers:
        server.close()
