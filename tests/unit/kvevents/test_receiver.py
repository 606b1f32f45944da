"""The receiver with real PUB and ROUTER sockets: what the sink holds is what the server holds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
import uvloop
import zmq

from epp.kvevents.receiver import KVEventReceiver
from epp.kvevents.settings import Publisher, PublisherState, ReceiverStats

_ENDPOINT = "10.0.0.1:8000"


def _state(receiver: KVEventReceiver) -> PublisherState:
    (state,) = receiver.states()
    return state


async def test_live_events_and_a_clear(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server)
    server.publish(store=[1, 2, 3])
    server.publish(remove=[2], store=[4])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1, 3, 4})
    server.clear()
    server.publish(store=[9])
    await stage.until(lambda: stage.ledger.held[_ENDPOINT] == {9})
    state = _state(receiver)
    assert state.status == "live"
    assert state.topic == "kv@10.0.0.1:8000@m"
    assert state.last_seq == server.seq - 1
    assert abs(state.lag) < 30
    assert (state.gaps, state.lost, state.restarts) == (0, 0, 0)
    assert state.connected_since is not None
    receiver.remove(_ENDPOINT)
    assert stage.ledger.cleared == [_ENDPOINT]
    stats = receiver.stats()
    assert stats.messages == state.messages > 0
    assert stats.decode.clears == 1
    assert stats.publishers == 0


@pytest.mark.parametrize("topic_frame", [True, False])
async def test_warm_start_and_gap(stage: Any, topic_frame: bool) -> None:
    server = stage.server(topic_frame=topic_frame)
    for number in range(50):
        server.publish(store=[number])
    receiver = await stage.follow(server)
    assert stage.ledger.held[_ENDPOINT] == server.held
    assert server.requests[0] == 0
    assert _state(receiver).replayed >= 50

    lost_at = server.seq
    server.publish(store=[100, 101], lost=True)
    server.publish(remove=[7], lost=True)
    server.publish(store=[102])
    for number in range(200, 220):
        server.publish(store=[number])
    await stage.until(lambda: stage.ledger.held[_ENDPOINT] == server.held)
    state = _state(receiver)
    assert server.requests[-1] == lost_at - 1  # from the last known message, to know the process again
    assert (state.gaps, state.lost, state.restarts) == (1, 0, 0)
    assert state.last_seq == server.seq - 1
    assert state.duplicates > 0  # messages that came both live and in the replay
    assert _ENDPOINT not in stage.ledger.cleared[1:]


async def test_without_a_replay_port_a_gap_is_counted_and_a_restart_clears(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server)
    server.publish(store=[1])
    server.publish(store=[2], lost=True)
    server.publish(store=[3])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1, 3})
    assert (_state(receiver).gaps, _state(receiver).lost) == (1, 1)
    assert stage.ledger.doubted == {3}  # a removal may be among what is lost
    server.publish(store=list(range(100_000, 110_000)))  # read in pieces
    await stage.until(lambda: 109_999 in stage.ledger.held[_ENDPOINT])
    assert len(stage.ledger.doubted) == 10_001
    server.anew()
    server.publish(store=[5])
    await stage.until(lambda: stage.ledger.held[_ENDPOINT] == {5})
    assert 5 not in stage.ledger.doubted
    server.anew()
    server.publish(store=[6], lost=True)
    server.anew()
    server.publish(lost=True)
    server.publish(store=[7])
    await stage.until(lambda: 7 in stage.ledger.held[_ENDPOINT])
    assert _state(receiver).restarts >= 1


@pytest.mark.parametrize("beyond", [False, True])
async def test_a_new_process_is_known_even_when_it_overtook_the_old_number(stage: Any, beyond: bool) -> None:
    server = stage.server()
    receiver = await stage.follow(server)
    server.publish(store=[1, 2])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1, 2})
    last = server.seq
    server.anew()
    for number in range(last + 5 if beyond else last - 1):
        server.publish(store=[100 + number], lost=True)
    server.publish(store=[50])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)
    state = _state(receiver)
    assert state.restarts == 1
    assert state.lost == 0


async def test_a_gap_larger_than_the_buffer_starts_over(stage: Any) -> None:
    server = stage.server(buffer=5)
    receiver = await stage.follow(server)
    server.publish(store=[1])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1})
    for number in range(10, 20):
        server.publish(store=[number], lost=True)
    server.publish(remove=[1])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {16, 17, 18, 19})
    assert _state(receiver).lost == 6


async def test_answers_that_are_lost_are_asked_for_again(stage: Any) -> None:
    server = stage.server()
    receiver = await stage.follow(server)
    for number in range(20):
        server.publish(store=[number], lost=True)
    server.omit = {server.seq - 10, server.seq - 3}
    server.publish(store=[99])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)
    assert _state(receiver).lost == 0
    assert server.requests[-1] > server.requests[-2]


@pytest.mark.parametrize("answered", [True, False])
async def test_what_the_first_replay_brings_is_not_lost(stage: Any, answered: bool) -> None:
    server = stage.server()
    for number in range(10):
        server.publish(store=[number], lost=True)
    server.mute = not answered
    receiver = stage.receiver(replay_patience=60 if answered else 0.3)
    receiver.add(_ENDPOINT, [server.publisher])
    while not stage.ledger.held.get(_ENDPOINT):  # a live message comes before the first answer
        server.publish(store=[server.seq])
        await asyncio.sleep(0.01)
    first = min(stage.ledger.held[_ENDPOINT])
    if answered:
        assert _state(receiver).lost == 0
    await stage.until(lambda: receiver.progress().ready)
    if answered:
        await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)
        assert _state(receiver).lost == 0
    else:
        assert _state(receiver).lost == first


async def test_what_waits_is_given_to_the_index_together(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server)
    sizes: list[int] = []
    apply = stage.ledger.apply

    def note(endpoint: str, events: Any) -> None:
        sizes.append(len(events))
        apply(endpoint, events)

    stage.ledger.apply = note
    for number in range(300):
        server.publish(store=[number])
    server.clear()
    for number in range(300, 330):
        server.publish(store=[number])
    await stage.until(lambda: 329 in stage.ledger.held.get(_ENDPOINT, ()))
    assert stage.ledger.held[_ENDPOINT] == set(range(300, 330))
    assert sum(sizes) == 331
    assert max(sizes) > 4
    assert receiver.stats().sink_errors == 0


async def test_a_message_that_is_half_read_is_not_overtaken(stage: Any) -> None:
    """The end of a replay applies the live message that was kept: not before what came earlier."""
    server = stage.server()
    receiver = await stage.follow(server)
    server.mute = True
    server.publish(store=[1], lost=True)
    server.publish(store=[2])
    (subscription,) = receiver._all()
    await stage.until(lambda: subscription.replaying)
    later = time.monotonic() + 1000
    subscription._pieces = iter(())
    subscription.tick(later)
    assert subscription.replaying
    subscription._pieces = None
    subscription.tick(later)
    assert not subscription.replaying
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {2})


async def test_a_dead_replay_port_delays_only_for_its_patience(stage: Any) -> None:
    server = stage.server()
    server.mute = True
    receiver = stage.receiver(replay_patience=0.3)
    receiver.add(_ENDPOINT, [server.publisher])
    await stage.until(lambda: receiver.stats().connected == 1)
    assert not receiver.progress().ready
    await stage.until(lambda: receiver.progress().ready)
    server.publish(store=[1])
    server.publish(store=[2], lost=True)
    server.publish(store=[3])
    await stage.until(lambda: 3 in stage.ledger.held.get(_ENDPOINT, ()))
    assert _state(receiver).replays_failed >= 1
    server.mute = False  # and when it comes back, everything is repaired without anyone asking
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)
    assert _state(receiver).status in ("live", "catching-up")


async def test_only_topics_that_are_asked_for(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server, topic_filter="kv@10.0.0.1")
    server.topic = b"kv@10.0.0.2:8000@m"
    server.publish(store=[1])
    server.topic = b"kv@10.0.0.1:8000@m"
    server.publish(store=[2])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {2})
    assert _state(receiver).gaps == 1  # the one that was not asked for


async def test_a_message_that_is_too_long_is_not_even_received(stage: Any) -> None:
    """ZMQ takes a message in as a whole: its length must be refused before it is there."""
    server = stage.server(replay=False)
    receiver = await stage.follow(server, max_message_bytes=10_000, reconnect_limit=0.2)
    server.send(bytes(1 << 20))
    await stage.heard(server, receiver)  # on a new connection, though ZMQ gives up on such a publisher
    assert _state(receiver).bytes < 10_000
    assert _state(receiver).connections >= 2


async def test_after_a_replay_there_is_a_pause(stage: Any) -> None:
    server = stage.server()
    receiver = await stage.follow(server, replay_cooldown=60.0)
    asked = len(server.requests)
    for number in (1, 3, 5):
        server.publish(store=[number], lost=True)
        server.publish(store=[number + 1])
        await stage.until(lambda last=number + 1: last in stage.ledger.held.get(_ENDPOINT, ()))
    assert len(server.requests) <= asked + 1
    assert _state(receiver).lost >= 2  # what no replay may bring yet


async def test_a_new_process_is_asked_though_the_former_one_was_a_moment_ago(stage: Any) -> None:
    server = stage.server()
    receiver = await stage.follow(server, replay_cooldown=60.0)
    for number in (1, 3):  # a repaired gap starts the pause
        server.publish(store=[number], lost=True)
        server.publish(store=[number + 1])
        await stage.until(lambda last=number + 1: last in stage.ledger.held.get(_ENDPOINT, ()))
    lost = _state(receiver).lost
    server.anew()
    for number in range(10, 13):
        server.publish(store=[number], lost=True)
    server.publish(store=[13])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == server.held)
    assert _state(receiver).restarts == 1
    assert _state(receiver).lost == lost
    asked = len(server.requests)
    for start in (20, 30):  # a process that starts anew all the time does not replay all the time
        server.anew()
        server.publish(store=[start], lost=True)
        server.publish(store=[start + 1])
        await stage.until(lambda start=start: stage.ledger.held.get(_ENDPOINT) == {start + 1})
    assert len(server.requests) == asked


async def test_a_new_connection_is_checked_though_a_replay_was_a_moment_ago(stage: Any) -> None:
    server = stage.server()
    receiver = await stage.follow(server, replay_cooldown=60.0)
    server.publish(store=[1], lost=True)
    server.publish(store=[2])
    await stage.until(lambda: 2 in stage.ledger.held.get(_ENDPOINT, ()))
    server.pub.unbind(f"tcp://127.0.0.1:{server.port}")
    server.pub.close(0)
    await stage.until(lambda: receiver.stats().connected == 0)
    server.anew()
    server.pub = server.context.socket(zmq.PUB)
    server.pub.bind(f"tcp://127.0.0.1:{server.port}")
    await stage.until(lambda: not stage.ledger.held.get(_ENDPOINT), 20.0)
    assert _state(receiver).restarts == 1


class Source:
    """Something that is always there to be read; each step takes so long by the receiver's clock."""

    def __init__(self, clock: list[float], cost: float) -> None:
        self.spent = 0.0
        self._clock, self._cost = clock, cost

    def step(self) -> bool:
        self._clock[0] += self._cost
        self.spent += self._cost
        return True

    def signalled(self) -> None:
        return

    def tick(self, now: float) -> None:
        return

    def close(self) -> None:
        return


async def test_whoever_costs_more_has_fewer_turns(stage: Any) -> None:
    """A message that takes 5 ms is paid for: in the same time the others are read as long."""
    now = [0.0]
    receiver = KVEventReceiver(stage.ledger, clock=lambda: now[0], wall_clock=time.time)
    receiver.start()
    heavy, light = Source(now, 0.005), Source(now, 0.00001)
    try:
        receiver.wake(heavy)
        receiver.wake(light)
        async with asyncio.timeout(60):
            while now[0] < 1.0:  # noqa: ASYNC110 - time is what passes here
                await asyncio.sleep(0)
    finally:
        receiver.stop()
    assert 0.4 < heavy.spent < 0.6
    assert 0.4 < light.spent < 0.6


async def test_a_connection_that_was_away_is_checked(stage: Any) -> None:
    server = stage.server()
    receiver = await stage.follow(server)
    server.publish(store=[1, 2])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1, 2})
    server.pub.unbind(f"tcp://127.0.0.1:{server.port}")
    server.pub.close(0)
    await stage.until(lambda: receiver.stats().connected == 0)
    assert _state(receiver).status == "connecting"
    server.anew()
    server.pub = server.context.socket(zmq.PUB)
    server.pub.bind(f"tcp://127.0.0.1:{server.port}")
    # Nothing is published: only the replay on reconnection tells that the old cache is gone.
    await stage.until(lambda: not stage.ledger.held.get(_ENDPOINT))
    assert _state(receiver).restarts == 1
    assert _state(receiver).connections == 2


async def test_ranks_of_one_endpoint_tell_again_when_one_restarts(stage: Any) -> None:
    one, two = stage.server(), stage.server()
    two.rank = 1
    one.publish(store=[1])
    two.publish(store=[2])
    receiver = stage.receiver()
    receiver.add(_ENDPOINT, [one.publisher, two.publisher])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {1, 2})
    await stage.until(lambda: receiver.progress().ready)
    await stage.heard(one, receiver)
    one.anew()
    one.publish(store=[5])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == {2, 5})
    assert stage.ledger.doubted == {2}  # what is told again is no further copy
    assert [state.rank for state in receiver.states()] == [0, 1]


async def test_only_a_few_replays_run_at_once(stage: Any) -> None:
    servers = [stage.server() for _ in range(6)]
    receiver = stage.receiver(concurrent_replays=2)
    for index, server in enumerate(servers):
        server.publish(store=[index])
        receiver.add(f"10.0.0.{index}:8000", [server.publisher])
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, receiver.stats().replaying)
        return receiver.progress().ready

    await stage.until(done)
    assert most == 2
    assert {min(held) for held in stage.ledger.held.values()} == set(range(6))
    assert receiver.progress().total == receiver.progress().synced == 6


async def test_bound_mode(stage: Any) -> None:
    names = {"pod-1": {0: _ENDPOINT, 7: "10.0.0.1:8007"}, "10.0.0.2:8000": {0: "10.0.0.2:8000"}}
    receiver = stage.receiver(resolve=lambda name, rank: names.get(name, {}).get(rank))
    address = receiver.bind("tcp://127.0.0.1:*")
    receiver.add(_ENDPOINT, [])
    receiver.add("10.0.0.2:8000", [])
    with pytest.raises(ValueError, match="already bound"):
        receiver.bind("tcp://127.0.0.1:*")
    pub = stage.context.socket(zmq.PUB)
    pub.connect(address)

    def send(topic: bytes, seq: int, store: int, rank: int = 0) -> None:
        event = {"type": "BlockStored", "block_hashes": [store], "token_ids": [1], "block_size": 1}
        payload = msgspec.msgpack.encode([time.time(), [event], rank])
        pub.send_multipart([topic, seq.to_bytes(8, "big"), payload])

    while not receiver.stats().unknown_topics:
        pub.send_multipart([b"kv@nobody@m", bytes(8), b""])
        await asyncio.sleep(0.01)
    pub.send_multipart([b"kv@no-model", bytes(8), b""])
    pub.send_multipart([b"kv@pod-1@m", b"short", b""])
    pub.send_multipart([b"kv@pod-1@m", bytes(8), b"garbage"])
    send(b"kv@pod-1@m", 0, 1)
    send(b"kv@pod-1@m", 1, 2)
    send(b"kv@pod-1@m", 0, 50, rank=1)
    send(b"kv@pod-1@m", 3, 3)
    send(b"kv@pod-1@m", 0, 70, rank=7)
    send(b"kv@10.0.0.2:8000@m", 5, 8)
    seventh = {"10.0.0.1:8007": {70}}
    await stage.until(lambda: stage.ledger.held == {_ENDPOINT: {1, 2, 3, 50}, **seventh, "10.0.0.2:8000": {8}})
    assert stage.ledger.doubted == {3}  # what is lost may be a removal
    send(b"kv@pod-1@m", 0, 9)
    await stage.until(lambda: stage.ledger.held[_ENDPOINT] == {9})
    assert stage.ledger.doubted == {3}
    stats = receiver.stats()
    assert (stats.gaps, stats.lost, stats.restarts, stats.bad_frames) == (1, 1, 1, 1)
    assert stats.decode.errors == {"batch": 1}
    assert {(state.endpoint, state.rank) for state in receiver.states()} == {
        (_ENDPOINT, 0),
        (_ENDPOINT, 1),
        ("10.0.0.1:8007", 7),
        ("10.0.0.2:8000", 0),
    }
    receiver.remove("10.0.0.2:8000")
    assert "10.0.0.2:8000" not in stage.ledger.held
    assert receiver.stats().messages == stats.messages
    pub.close(0)


async def test_addresses_that_cannot_be(stage: Any) -> None:
    receiver = stage.receiver()
    receiver.add(_ENDPOINT, [Publisher("nonsense")])
    receiver.add(_ENDPOINT, [Publisher("nonsense")])
    (state,) = receiver.states()
    assert state.status == "failed"
    assert "tcp://HOST:PORT" in state.error
    assert receiver.progress().ready
    with pytest.raises(ValueError, match="cannot bind"):
        receiver.bind("tcp://256.1.1.1:x")
    server = stage.server()
    receiver.add(_ENDPOINT, [Publisher(server.publisher.events, "nonsense")])
    await stage.until(lambda: receiver.progress().ready)
    assert "nonsense" in _state(receiver).error
    receiver.remove("unknown:1")


async def test_a_sink_that_fails_stops_nothing(stage: Any) -> None:
    class Broken:
        calls = 0

        def apply_many(self, batches: Any) -> None:
            self.calls += 1
            raise RuntimeError("no")

        def clear(self, endpoint: str) -> None:
            raise RuntimeError("no")

    sink = Broken()
    server = stage.server(replay=False)
    receiver = stage.receiver(sink=sink)
    receiver.add(_ENDPOINT, [server.publisher])
    while sink.calls < 3:
        server.publish(store=[1])
        await asyncio.sleep(0.01)
    receiver.remove(_ENDPOINT)
    assert receiver.stats().sink_errors >= 4


async def test_what_is_wrong_with_one_endpoint_costs_only_its_events(stage: Any) -> None:
    ledger = stage.ledger
    together: list[int] = []

    class Choosy:
        def apply_many(self, batches: Any) -> None:
            together.append(len(batches))
            if any(endpoint == _ENDPOINT for endpoint, _ in batches):
                raise RuntimeError("no")
            ledger.apply_many(batches)

        def clear(self, endpoint: str) -> None:
            ledger.clear(endpoint)

    other = "10.0.0.2:8000"
    servers = {name: stage.server(replay=False) for name in (_ENDPOINT, other)}
    receiver = stage.receiver(sink=Choosy())
    for name, server in servers.items():
        receiver.add(name, [server.publisher])
    await stage.until(lambda: all(state.connected_since is not None for state in receiver.states()))
    number = 0
    while max(together, default=0) < 2 or receiver.stats().sink_errors < 3:
        for server in servers.values():
            server.publish(store=[number])
        number += 1
        await asyncio.sleep(0.01)
        assert number < 2000
    await stage.until(lambda: ledger.held.get(other, set()) >= {number - 1})
    assert _ENDPOINT not in ledger.held
    refused = {state.endpoint: state.sink_errors for state in receiver.states()}
    assert refused[_ENDPOINT] > 0
    assert refused[other] == 0


async def test_long_messages_are_read_in_pieces(stage: Any) -> None:
    server = stage.server(replay=False)
    receiver = await stage.follow(server)
    many = list(range(40_000))
    events = [
        {"type": "BlockStored", "block_hashes": many[at : at + 100], "token_ids": many[at : at + 100], "block_size": 1}
        for at in range(0, len(many), 100)
    ]
    server.send(msgspec.msgpack.encode([time.time(), events, 0]))
    server.publish(remove=[5])
    await stage.until(lambda: stage.ledger.held.get(_ENDPOINT) == set(many) - {5})
    assert stage.ledger.applied >= 401
    assert receiver.stats().decode.errors == {}


def test_on_uvloop(context: zmq.Context) -> None:
    pub = context.socket(zmq.PUB)
    port = pub.bind_to_random_port("tcp://127.0.0.1")

    class Sink:
        events = 0

        def apply_many(self, batches: Any) -> None:
            self.events += sum(len(events) for _, events in batches)

        def clear(self, endpoint: str) -> None:
            self.events = 0

    async def main() -> ReceiverStats:
        sink = Sink()
        receiver = KVEventReceiver(sink, clock=time.monotonic, wall_clock=time.time)
        receiver.add(_ENDPOINT, [Publisher(f"tcp://127.0.0.1:{port}")])
        receiver.start()
        receiver.start()
        seq = 0
        async with asyncio.timeout(30):
            while sink.events < 500:
                event = {"type": "BlockRemoved", "block_hashes": [seq]}
                pub.send_multipart([b"kv@", seq.to_bytes(8, "big"), msgspec.msgpack.encode([1.0, [event]])])
                seq += 1
                await asyncio.sleep(0 if seq % 50 else 0.001)
        stats = receiver.stats()
        receiver.stop()
        return stats

    stats = uvloop.run(main())
    assert stats.decode.events >= 500
    assert stats.slices > 0
    pub.close(0)
