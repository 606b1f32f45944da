"""Whatever is lost, repeated, cut short or restarted: in the end the sink holds what the server holds."""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import msgspec
import zmq
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epp.kvevents.events import BlockRemoved, BlockStored
from epp.kvevents.publisher import Subscription
from epp.kvevents.settings import Publisher, ReceiverSettings

_HASHES = st.integers(0, 12)


class MemorySocket:
    """A socket without a network: what is in `queue` can be received, what is sent is kept."""

    def __init__(self) -> None:
        self.queue: deque[list[bytes]] = deque()
        self.sent: list[list[bytes]] = []
        self.monitor: MemorySocket | None = None
        self.closed = False

    def setsockopt(self, option: int, value: Any) -> None:
        return

    def getsockopt(self, option: int) -> int:
        return zmq.POLLIN if option == zmq.EVENTS and self.queue else 0

    def get_monitor_socket(self, events: int) -> MemorySocket:
        self.monitor = MemorySocket()
        return self.monitor

    def disable_monitor(self) -> None:
        return

    def connect(self, address: str) -> None:
        return

    def disconnect(self, address: str) -> None:
        return

    def recv_multipart(self, flags: int) -> list[bytes]:
        if not self.queue:
            raise zmq.Again
        return self.queue.popleft()

    def send_multipart(self, frames: list[bytes], flags: int) -> None:
        self.sent.append(frames)

    def close(self, linger: int) -> None:
        self.closed = True


class Host:
    """The receiver, with one subscription and no event loop."""

    def __init__(self) -> None:
        self.context: Any = self
        self.settings = ReceiverSettings()
        self.now = 1000.0
        self.sub = MemorySocket()
        self.dealer: MemorySocket | None = None
        self.held: set[int] = set()
        self.running = 0

    def socket(self, kind: int) -> MemorySocket:
        if kind == zmq.SUB:
            return self.sub
        self.dealer = MemorySocket()
        return self.dealer

    def clock(self) -> float:
        return self.now

    wall_clock = clock

    def resolve(self, name: str) -> str | None:
        return None

    def apply(self, state: Any, batch: Any) -> None:
        for event in batch.events:
            if isinstance(event, BlockStored):
                self.held.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                self.held.difference_update(event.block_hashes)
            else:
                self.held.clear()

    def clear(self, subscription: Any) -> None:
        self.held.clear()

    def clear_endpoint(self, endpoint: str) -> None:
        self.held.clear()

    def shares_endpoint(self, subscription: Any) -> bool:
        return False

    def watch(self, source: Any, descriptor: int) -> None:
        return

    unwatch = wake = lambda self, *_: None

    def acquire_replay(self, subscription: Subscription) -> None:
        self.running += 1
        subscription.begin_replay()

    def release_replay(self, subscription: Subscription) -> None:
        self.running -= 1


class Wire(RuleBasedStateMachine):
    """A server with its buffer on one side, a subscription on the other, and a bad network between."""

    @initialize(buffer=st.sampled_from([4, 10_000]), before=st.integers(0, 6))
    def begin(self, buffer: int, before: int) -> None:
        self.host = Host()
        self.buffer = buffer
        self.time = 1.0
        self.connected = False
        self.processes = 0
        self._anew()
        for number in range(before):
            self._publish(store=[number], remove=[], delivered=False)
        self.subscription = Subscription("10.0.0.1:8000", Publisher("tcp://a:1", "tcp://a:2"), self.host)
        self.subscription.open()
        self._connect()

    def _anew(self) -> None:
        self.seq, self.held, self.kept = 0, set[int](), list[tuple[int, bytes]]()
        self.processes += 1

    def _publish(self, *, store: list[int], remove: list[int], delivered: bool) -> None:
        self.time += 1
        events: list[Any] = []
        if remove:
            events.append(["BlockRemoved", remove])
            self.held -= set(remove)
        if store:
            events.append(["BlockStored", store, None, store, 1])
            self.held |= set(store)
        payload = msgspec.msgpack.encode([self.time, events, 0])
        self.kept = [*self.kept, (self.seq, payload)][-self.buffer :]
        if delivered and self.connected:
            self.host.sub.queue.append([b"kv@x@m", self.seq.to_bytes(8, "big"), payload])
        self.seq += 1

    def _monitor(self, event: int) -> None:
        assert self.host.sub.monitor is not None
        self.host.sub.monitor.queue.append([struct.pack("=hi", event, 0), b"tcp://a:1"])
        self.subscription.signalled()

    def _connect(self) -> None:
        self.connected = True
        self._monitor(zmq.Event.HANDSHAKE_SUCCEEDED)

    def _disconnect(self) -> None:
        # What is still in our queue arrived before, and so is read before the news.
        self._read(1000)
        self.connected = False
        self._monitor(zmq.Event.DISCONNECTED)

    def _read(self, steps: int) -> None:
        for _ in range(steps):
            if not self.subscription.step():
                return

    def _serve(self, lost: set[int], end: bool = True) -> None:
        dealer = self.host.dealer
        if dealer is None or dealer.closed:
            return
        while dealer.sent:
            start = int.from_bytes(dealer.sent.pop(0)[1], "big")
            for index, (seq, payload) in enumerate(pair for pair in self.kept if pair[0] >= start):
                if index not in lost:
                    dealer.queue.append([b"", b"topic", seq.to_bytes(8, "big"), payload])
            if end:
                dealer.queue.append([b"", b"", b"\xff" * 8, b""])

    @rule(store=st.lists(_HASHES, max_size=3), remove=st.lists(_HASHES, max_size=3), delivered=st.booleans())
    def publish(self, store: list[int], remove: list[int], delivered: bool) -> None:
        self._publish(store=store, remove=remove, delivered=delivered)

    @rule(steps=st.integers(1, 8))
    def read(self, steps: int) -> None:
        self._read(steps)

    @rule(lost=st.sets(st.integers(1, 9), max_size=3), end=st.booleans())
    def serve(self, lost: set[int], end: bool) -> None:
        self._serve(lost, end)

    @rule(garbage=st.lists(st.binary(max_size=9), max_size=4), to_replay=st.booleans())
    def garbage(self, garbage: list[bytes], to_replay: bool) -> None:
        if len(garbage) >= 2 and len(garbage[-2]) == 8:
            return  # by chance a message of the right form, with a number out of the blue
        dealer = self.host.dealer
        queue = dealer.queue if to_replay and dealer is not None else self.host.sub.queue
        queue.append(garbage)

    @rule(seconds=st.sampled_from([0.5, 6.0, 31.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.host.now += seconds
        self.subscription.tick(self.host.now)

    @precondition(lambda self: self.connected)
    @rule()
    def network_fails(self) -> None:
        self._disconnect()

    @precondition(lambda self: not self.connected)
    @rule()
    def network_returns(self) -> None:
        self._connect()

    @rule(published=st.integers(0, 20))
    def restart(self, published: int) -> None:
        if self.connected:
            self._disconnect()
        if self.host.dealer is not None:
            self.host.dealer.sent.clear()  # requests that the old process did not get to answer
        self._anew()
        for number in range(published):
            self._publish(store=[number % 13], remove=[(number + 5) % 13], delivered=False)
        self._connect()

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "host"):
            assert 0 <= self.host.running <= 1
            assert self.subscription.replaying == (self.host.running == 1)
            assert self.subscription.state.restarts < self.processes, "one process was taken for two"

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        if not self.connected:
            self._connect()
        for _ in range(12):
            self._publish(store=[], remove=[], delivered=True)
            for _ in range(4):
                self._serve(set())
                self._read(10_000)
            self.host.now += 700
            self.subscription.tick(self.host.now)
        state = self.subscription.refresh_status()
        if self.buffer >= self.seq:
            assert self.host.held == self.held, state
        else:
            assert self.host.held <= self.held, state  # what is older than the buffer may be unknown, never wrong
        assert state.last_seq == self.seq - 1
        assert state.status == "live"
        self.subscription.close()
        assert self.host.running == 0


TestWire = Wire.TestCase
TestWire.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_new_process_is_counted_once_when_its_first_messages_come_live_and_in_the_replay() -> None:
    wire = Wire()
    wire.begin(buffer=10_000, before=0)
    for _ in range(2):  # the first replay, from 0
        wire._serve(set())
        wire._read(1000)
    for number in range(10):
        wire._publish(store=[number], remove=[], delivered=True)
    wire._read(1000)
    wire.wait(31.0)  # long enough for the next replay
    wire.restart(published=3)
    for number in range(20, 24):
        wire._publish(store=[number], remove=[], delivered=True)
    for _ in range(3):
        wire._serve(set())
        wire._read(1000)
    state = wire.subscription.refresh_status()
    assert (state.restarts, state.lost, state.last_seq, state.status) == (1, 0, 6, "live")
    assert state.duplicates == 4
    assert wire.host.held == wire.held
