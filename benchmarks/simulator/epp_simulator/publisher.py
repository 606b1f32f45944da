"""Publishes the KV cache events of one engine over ZMQ, and answers for what was missed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import zmq
import zmq.asyncio

from epp_simulator.event_config import KVEventsConfig, advertised, binds
from epp_simulator.kv_events import Event, EventEncoder

END = b"\xff" * 8
"""Sequence number of the end mark of a replay."""

_TURN = 100  # answers of a replay between two chances for everything else


class EventPublisher:
    """PUB for batches, ROUTER for replay. Sequence numbers begin at 0 with each publisher.

    Message: topic, sequence (8 bytes, big-endian), payload. Replay request: `["", first sequence]`; answers:
    `["", topic, sequence, payload]` for each batch from there on, then `["", "", ff x 8, ""]`, both without the topic
    before vLLM 0.26. Must be made on a running event loop.
    """

    def __init__(self, config: KVEventsConfig, encoder: EventEncoder, host: str) -> None:
        self.seq = 0
        self._encoder = encoder
        self._topic = config.topic.encode()
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)
        self._context = zmq.asyncio.Context()
        self._replays: asyncio.Task[None] | None = None
        self._sockets: list[zmq.Socket[bytes] | zmq.asyncio.Socket] = []
        try:
            # A plain socket: `send` only hands over to ZMQ's thread, there is nothing to wait for.
            self._pub: zmq.Socket[bytes] = zmq.Socket(self._context, zmq.PUB)
            self._sockets.append(self._pub)
            self._pub.set_hwm(config.hwm)
            bound = self._open(self._pub, config.endpoint, bind=binds(config.endpoint))
            replay = None
            if config.replay_endpoint:
                router = self._context.socket(zmq.ROUTER)
                self._sockets.append(router)
                router.set_hwm(0)  # bounded by the buffer; a limit would drop answers silently
                replay = self._open(router, config.replay_endpoint, bind=True)
                self._replays = asyncio.get_running_loop().create_task(self._serve(router))
        except BaseException:
            self._free(0)
            raise
        self.config = replace(
            config,
            endpoint=advertised(bound, host),
            replay_endpoint=replay and advertised(replay, host),
        )

    def publish(self, events: Sequence[Event]) -> None:
        """One batch, with everything that happened in a step."""
        payload = self._encoder.encode(time.time(), events)
        number = self.seq.to_bytes(8, "big")
        self.seq += 1
        self._buffer.append((number, payload))
        self._pub.send_multipart((self._topic, number, payload))  # PUB never blocks

    async def close(self) -> None:
        """What subscribers have not taken within a moment is lost."""
        if self._replays is not None:
            self._replays.cancel()
            await asyncio.gather(self._replays, return_exceptions=True)
        self._free(100)

    def _free(self, linger: int) -> None:
        for socket in self._sockets:
            socket.close(linger)
        self._context.term()

    def _open(self, socket: zmq.Socket[bytes] | zmq.asyncio.Socket, endpoint: str, *, bind: bool) -> str:
        socket.setsockopt(zmq.IPV6, 1)
        try:
            if bind:
                socket.bind(endpoint)
                return socket.getsockopt_string(zmq.LAST_ENDPOINT)
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise OSError(f"cannot {'bind' if bind else 'connect to'} {endpoint} for KV events: {error}") from error
        return endpoint

    async def _serve(self, router: zmq.asyncio.Socket) -> None:
        while True:
            frames = await router.recv_multipart()
            if len(frames) == 3 and len(frames[2]) == 8:
                await self._answer(router, frames[0], int.from_bytes(frames[2], "big"))

    async def _answer(self, router: zmq.asyncio.Socket, client: bytes, start: int) -> None:
        topics = self._encoder.schema.topic_in_replay
        first = self.seq - len(self._buffer)
        for count, (number, payload) in enumerate(list(self._buffer)[max(0, start - first) :]):
            await router.send_multipart([client, b"", *([self._topic] if topics else []), number, payload])
            if count % _TURN == _TURN - 1:
                await asyncio.sleep(0)
        await router.send_multipart([client, b"", *([b""] if topics else []), END, b""])
