"""What is counted of connections, their failures and failed replays, with real sockets that go, lie and stay silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import zmq

from epp.kvevents.receiver import KVEventReceiver
from epp.kvevents.replay import ReplayConversation
from epp.kvevents.settings import OPERATIONS, Publisher, PublisherState

_ENDPOINT = "10.0.0.1:8000"


def _state(receiver: KVEventReceiver) -> PublisherState:
    (state,) = receiver.subscriptions()
    return state


def _bind_again(server: Any) -> None:
    server.pub = server.context.socket(zmq.PUB)
    server.pub.bind(f"tcp://127.0.0.1:{server.port}")


async def test_a_lost_connection_and_every_attempt_to_get_it_back(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server, reconnect=0.02, reconnect_limit=0.1)
    state = _state(receiver)
    assert (state.reconnections, state.zmq_errors) == (0, {})
    server.pub.close(0)
    await stage.until(lambda: state.connected_since is None)
    await stage.until(lambda: state.reconnections >= 3)
    assert state.zmq_errors["recv"] == 1
    await stage.until(lambda: state.zmq_errors.get("connect", 0) >= 3)
    _bind_again(server)
    await stage.until(lambda: state.connected_since is not None)
    # The end of the connection brought one attempt, and so did each that failed.
    assert state.reconnections == 1 + state.zmq_errors["connect"]
    assert state.zmq_errors["recv"] == 1
    before = state.reconnections
    await stage.heard(server, receiver)
    assert state.reconnections == before


async def test_a_server_that_was_never_there(stage: Any) -> None:
    receiver = stage.receiver(reconnect=0.02, reconnect_limit=0.1)
    server = stage.server(replay=False)
    server.pub.close(0)
    receiver.add(_ENDPOINT, [server.publisher])
    state = _state(receiver)
    await stage.until(lambda: state.reconnections >= 3)
    assert state.zmq_errors == {"connect": state.reconnections}
    _bind_again(server)
    await stage.until(lambda: state.connected_since is not None)
    assert set(state.zmq_errors) == {"connect"}


async def test_when_zmq_gives_up_our_own_attempts_count(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server, max_message_bytes=10_000, reconnect_limit=0.2)
    state = _state(receiver)
    server.send(bytes(1 << 20))
    await stage.heard(server, receiver)
    assert state.zmq_errors == {"recv": 1}
    assert state.reconnections >= 1


@contextlib.asynccontextmanager
async def _web_server() -> AsyncIterator[int]:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_something_else_on_the_port_is_no_connection(stage: Any) -> None:
    async with _web_server() as port:
        receiver = stage.receiver(reconnect=0.02, reconnect_limit=0.1)
        receiver.add(_ENDPOINT, [Publisher(f"tcp://127.0.0.1:{port}")])
        state = _state(receiver)
        await stage.until(lambda: state.zmq_errors.get("connect", 0) >= 3)
        assert state.reconnections >= 2
        assert set(state.zmq_errors) == {"connect"}
        assert state.connections == 0


async def test_addresses_that_zmq_refuses(stage: Any) -> None:
    receiver = stage.receiver()
    receiver.add("10.0.0.9:1", [Publisher("nonsense")])
    (state,) = receiver.subscriptions()
    assert state.zmq_errors == {"connect": 1}
    server = stage.server()
    receiver.add(_ENDPOINT, [Publisher(server.publisher.events, "nonsense")])
    state = receiver.subscriptions()[1]
    await stage.until(lambda: state.replays_failed >= 1)
    assert state.zmq_errors == {"replay-connect": state.replays_failed}


async def test_every_failed_replay_has_one_reason(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = stage.server()
    receiver = await stage.follow(server, replay_patience=0.3)
    state = _state(receiver)
    assert state.zmq_errors == {}

    async def lose_one(reason: str) -> None:
        before = state.zmq_errors.get(reason, 0)
        await stage.until(lambda: state.status == "live" or receiver.states()[0].status == "live")
        server.publish(store=[server.seq], lost=True)
        server.publish(store=[server.seq])
        await stage.until(lambda: state.zmq_errors.get(reason, 0) > before)

    server.mute = True
    await lose_one("replay-no-progress")
    server.mute = False
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)

    def no_room(_self: ReplayConversation, _start: int) -> None:
        raise zmq.Again

    with monkeypatch.context() as patch:
        patch.setattr(ReplayConversation, "ask", no_room)
        await lose_one("replay-send")
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)
    assert set(state.zmq_errors) <= set(OPERATIONS)
    assert sum(state.zmq_errors.values()) == state.replays_failed


async def test_a_replay_that_goes_on_for_too_long(stage: Any) -> None:
    server = stage.server()
    server.mute = True
    receiver = stage.receiver(replay_patience=60.0, replay_limit=0.2)
    receiver.add(_ENDPOINT, [server.publisher])
    state = _state(receiver)
    await stage.until(lambda: state.replays_failed >= 1)
    assert state.zmq_errors == {"replay-incomplete": state.replays_failed}


async def test_received_is_what_the_subscription_brought(stage: Any) -> None:
    server = stage.server()
    receiver = await stage.follow(server)
    state = _state(receiver)
    server.pub.send_multipart([server.topic, b"short", b""])
    server.pub.send_multipart([server.topic, bytes(8)])
    await stage.until(lambda: state.bad_frames == 2)
    assert state.received == state.messages + 2
    before = state.received
    # An answer to a replay that is none was not received from the subscription.
    server.publish(store=[1], lost=True)
    server.publish(store=[2])
    router = server.router
    server.router = None  # the stage is not to answer
    await stage.until(lambda: router.poll(0))
    server.router = router
    client, _, start = server.router.recv_multipart()
    server.router.send_multipart([client, b"", b"not a number", b""])
    for seq, payload in server.kept:
        if seq >= int.from_bytes(start, "big"):
            server.router.send_multipart([client, b"", server.topic, seq.to_bytes(8, "big"), payload])
    server.router.send_multipart([client, b"", b"", b"\xff" * 8, b""])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1, 2})
    assert (state.bad_frames, state.bad_answers) == (3, 1)
    assert state.received == before + 1


async def test_the_bound_socket_counts_whatever_comes(stage: Any) -> None:
    receiver = stage.receiver()
    assert receiver.received_bound is None
    address = receiver.bind("tcp://127.0.0.1:*")
    assert receiver.received_bound == 0
    receiver.add(_ENDPOINT, [])
    pub = stage.context.socket(zmq.PUB)
    pub.connect(address)
    while not receiver.stats().unknown_topics:
        pub.send_multipart([b"kv@nobody@m", bytes(8), b""])
        await asyncio.sleep(0.01)
    topic = f"kv@{_ENDPOINT}@m".encode()
    pub.send_multipart([topic, b"short", b""])
    pub.send_multipart([topic, bytes(8), msgspec.msgpack.encode([0.0, [], 0])])
    await stage.until(lambda: receiver.stats().messages == 1)
    stats = receiver.stats()
    assert receiver.received_bound == stats.unknown_topics + 2
    receiver.remove(_ENDPOINT)
    assert receiver.received_bound == stats.unknown_topics + 2
    assert receiver.subscriptions() == []
    pub.close(0)
