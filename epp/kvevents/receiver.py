"""Receives the KV cache events of all endpoints and hands them to a sink, on the event loop, in short slices.

A slice reads for a millisecond at most and gives what it has read to the sink; then everything else on the loop has its
turn, requests above all, which takes a few passes of the loop. Within a slice the publishers that have something take
turns, and each pays for the time that its messages cost, so that one that floods gets no more than its share. What is
not read waits in ZMQ's queues, which are bounded, and then at the publisher.

A call of the sink costs nearly the same for 1 block as for 100. So what has been read from all publishers goes there in
one call: the further the picker is behind, the cheaper a block gets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from epp.api.plugin import Clock
from epp.kvevents.bound import BoundSubscription
from epp.kvevents.decoding import Batch
from epp.kvevents.events import AllBlocksCleared, EventSink, KVEvent
from epp.kvevents.host import Source
from epp.kvevents.publisher import Subscription
from epp.kvevents.settings import Progress, Publisher, PublisherState, ReceiverSettings, ReceiverStats

log = logging.getLogger(__name__)

_TURN = 0.0001  # seconds of a publisher's turn
_STEPS = 64  # in a turn, for clocks that stand still
_VISITS = 4  # of each publisher in a slice, at least; those in debt have no turn
_TICK = 1.0
_GATHERED = 1024  # blocks that end a slice
_PASSES = 2  # of the event loop between two slices: a request takes several
_OVERRUN = 8  # a slice this many times too long (one huge event) is followed by a rest of the same length
_QUIET = 60.0  # seconds between two log lines of the same kind


class KVEventReceiver:
    """Subscribes to the publishers of endpoints that are added, and to those that connect to a bound socket.

    `clock`: monotonic seconds. `wall_clock`: seconds since the epoch, only for the lag. `resolve`: from the name in a
    topic and a data-parallel rank to the endpoint, for the bound mode; None: unknown, its events are counted and
    dropped.

    Everything is called from the event loop that runs at `start`. One ZMQ thread serves all sockets.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        clock: Clock,
        wall_clock: Clock,
        settings: ReceiverSettings | None = None,
        resolve: Callable[[str, int], str | None] | None = None,
    ) -> None:
        self.sink = sink
        self.clock = clock
        self.wall_clock = wall_clock
        self.settings = ReceiverSettings() if settings is None else settings
        self.resolve = resolve or (lambda name, _rank: name if name in self._subscriptions else None)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(1)
        self.context.set(zmq.MAX_SOCKETS, 65535)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: dict[str, tuple[Subscription, ...]] = {}
        self._bound: BoundSubscription | None = None
        self._ready: deque[Source] = deque()
        self._queued: set[Source] = set()
        self._credit: dict[Source, float] = {}
        self._gathered: dict[str, tuple[PublisherState, list[KVEvent]]] = {}  # by endpoint, within a turn
        self._blocks = 0
        self._scheduled: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replaying: set[Subscription] = set()
        self._waiting: deque[Subscription] = deque()
        self._retired = ReceiverStats()
        self._logged: dict[str, float] = {}

    def start(self) -> None:
        """Connect what was added so far. Needs a running event loop."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        for subscription in self._all():
            subscription.open()
        self._timer = self._loop.call_later(_TICK, self._tick)

    def stop(self) -> None:
        """Disconnect and free everything; the sink keeps what it has."""
        if self._timer is not None:
            self._timer.cancel()
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._waiting.clear()
        for subscription in self._all():
            subscription.close()
        if self._bound is not None:
            self._bound.close()
        self._loop = self._timer = self._scheduled = None
        self._subscriptions = {}
        self.context.destroy(linger=0)

    def bind(self, address: str) -> str:
        """Listen for publishers that connect (`tcp://*:5557`), after `start`; returns the address with its port.

        ValueError when the address cannot be bound.
        """
        if self._bound is not None:
            raise ValueError(f"already bound to {self._bound.address}")
        try:
            self._bound = BoundSubscription(self, address)
        except zmq.ZMQError as error:
            raise ValueError(f"cannot bind {address!r} for KV events: {error}; expected tcp://*:PORT") from error
        return self._bound.address

    def add(self, endpoint: str, publishers: Sequence[Publisher]) -> None:
        """Follow an endpoint (`ip:port` of its server); no publishers: it is expected to connect to the bound socket.

        Again with the same publishers: nothing happens; with others: as removed and added.
        """
        known = self._subscriptions.get(endpoint)
        if known is not None:
            if [(p.events, p.replay, p.rank) for p in publishers] == [
                (s.state.address, s.state.replay_address, s.state.rank) for s in known
            ]:
                return
            self.remove(endpoint)
        subscriptions = tuple(Subscription(endpoint, publisher, self) for publisher in publishers)
        self._subscriptions[endpoint] = subscriptions
        if self._loop is not None:
            for subscription in subscriptions:
                subscription.open()
                if subscription.state.error:
                    self._warn("address", subscription.state.error)

    def remove(self, endpoint: str) -> None:
        """The endpoint is gone: disconnect, and clear it in the sink."""
        subscriptions = self._subscriptions.pop(endpoint, None)
        if subscriptions is None:
            return
        for subscription in subscriptions:
            subscription.close()
            self._drop(subscription)
            self._retired.add(subscription.state)
        if self._bound is not None:
            for state in self._bound.forget(endpoint):
                self._retired.add(state)
        self.clear_endpoint(endpoint)

    def progress(self) -> Progress:
        """How far the warm start is."""
        every = self._all()
        return Progress(len(every), sum(subscription.synced for subscription in every))

    @property
    def followed(self) -> int:
        """Endpoints that were added, whether they publish or not."""
        return len(self._subscriptions)

    def subscriptions(self) -> list[PublisherState]:
        """Every publisher that is connected to, as it was told of last. Costs a microsecond for ten."""
        return [subscription.state for subscription in self._all()]

    @property
    def received_bound(self) -> int | None:
        """Messages that came to the bound socket, readable or not; None: nothing is bound."""
        return None if self._bound is None else self._bound.received

    def states(self) -> list[PublisherState]:
        """Every publisher as it is now, those of the bound socket included."""
        states = [subscription.refresh_status() for subscription in self._all()]
        if self._bound is not None:
            states += [stream.state for streams in self._bound.streams.values() for stream in streams.values()]
        return states

    def stats(self) -> ReceiverStats:
        """Sums over all publishers. Costs a few microseconds per publisher."""
        total = ReceiverStats()
        retired = self._retired
        for name in ("messages", "bytes", "duplicates", "bad_frames", "gaps", "lost", "restarts", "replays"):
            setattr(total, name, getattr(retired, name))
        for name in ("replays_failed", "replayed", "sink_errors", "slices", "busy_seconds", "longest_slice"):
            setattr(total, name, getattr(retired, name))
        total.decode.add(retired.decode)
        states = self.states()
        for state in states:
            total.add(state)
        total.endpoints = len(self._subscriptions)
        total.publishers = len(states)
        connected = [state for state in states if state.connected_since is not None]
        total.connected = len(connected)
        total.lag = max((state.lag for state in connected), default=0.0)
        total.replaying = len(self._replaying)
        if self._bound is not None:
            total.unknown_topics = self._bound.unknown_topics
            total.bad_frames += self._bound.bad_frames
        return total

    # What publishers use.

    def apply(self, state: PublisherState, batch: Batch) -> None:
        """The sink gets these events at the end of the turn, with others of the same endpoint."""
        gathered = self._gathered.get(state.endpoint)
        if gathered is None:
            gathered = self._gathered[state.endpoint] = (state, [])
        gathered[1].extend(batch.events)
        self._blocks += sum(
            1 if isinstance(event, AllBlocksCleared) else len(event.block_hashes) for event in batch.events
        )

    def _flush(self) -> None:
        """Give events to the sink; its errors are counted, and do not stop the stream."""
        self._blocks = 0
        gathered, self._gathered = self._gathered, {}
        if not gathered:
            return
        batches = [(endpoint, events) for endpoint, (_, events) in gathered.items()]
        try:
            self.sink.apply_many(batches)
            return
        except Exception:
            if len(batches) == 1:
                self._refused(gathered[batches[0][0]][0])
                return
        for batch in batches:  # what is wrong with one endpoint's events must not cost the others theirs
            try:
                self.sink.apply_many([batch])
            except Exception:
                self._refused(gathered[batch[0]][0])

    def _refused(self, state: PublisherState) -> None:
        state.sink_errors += 1
        self._warn("sink", f"the index refused events of {state.endpoint}", trace=True)

    def clear_endpoint(self, endpoint: str) -> None:
        """Forget what the endpoint holds, and what it told before."""
        self._gathered.pop(endpoint, None)
        try:
            self.sink.clear(endpoint)
        except Exception:
            self._retired.sink_errors += 1
            self._warn("sink", f"the index could not forget {endpoint}", trace=True)

    def clear(self, subscription: Subscription) -> None:
        """Forget what the endpoint of this subscription holds; its other ranks tell theirs again."""
        self.clear_endpoint(subscription.state.endpoint)
        for other in self._subscriptions.get(subscription.state.endpoint, ()):
            if other is not subscription:
                other.refill()

    def shares_endpoint(self, subscription: Subscription) -> bool:
        """Other ranks publish for the same endpoint."""
        return len(self._subscriptions.get(subscription.state.endpoint, ())) > 1

    def watch(self, source: Source, descriptor: int) -> None:
        """Wake `source` when the descriptor is readable."""
        if self._loop is not None:
            self._loop.add_reader(descriptor, partial(self._signal, source))

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        if self._loop is not None:
            self._loop.remove_reader(descriptor)

    def wake(self, source: Source) -> None:
        """`source.step` has something to do."""
        if source in self._queued or self._loop is None:
            return
        self._queued.add(source)
        self._ready.append(source)
        if self._scheduled is None:
            self._scheduled = self._loop.call_soon(self._slice)

    def acquire_replay(self, subscription: Subscription) -> None:
        """Begin the replay now, or when one of the running ones is over."""
        if len(self._replaying) < self.settings.concurrent_replays:
            self._replaying.add(subscription)
            subscription.begin_replay()
        else:
            self._waiting.append(subscription)

    def release_replay(self, subscription: Subscription) -> None:
        """The replay is over, or will not begin."""
        if subscription in self._replaying:
            self._replaying.discard(subscription)
        elif subscription in self._waiting:
            self._waiting.remove(subscription)
        if self._waiting and self._loop is not None and len(self._replaying) < self.settings.concurrent_replays:
            following = self._waiting.popleft()
            self._replaying.add(following)
            # Not from here: a row of replays that fail at once would nest.
            self._loop.call_soon(self._begin_replay, following)

    def _begin_replay(self, subscription: Subscription) -> None:
        if subscription in self._replaying:
            subscription.begin_replay()

    def _all(self) -> list[Subscription]:
        return [subscription for every in self._subscriptions.values() for subscription in every]

    def _drop(self, source: Source) -> None:
        self._credit.pop(source, None)
        if source in self._queued:
            self._queued.discard(source)
            self._ready.remove(source)

    def _signal(self, source: Source) -> None:
        source.signalled()
        self.wake(source)

    def _slice(self) -> None:
        self._scheduled = None
        clock, ready = self.clock, self._ready
        began = now = clock()
        end = began + self.settings.slice_seconds
        brought: dict[Source, int] = {}
        for _ in range(_STEPS + _VISITS * len(ready)):
            if not ready or now >= end or self._blocks >= _GATHERED:
                break
            source = ready[0]
            credit = min(self._credit.get(source, 0.0) + _TURN, _TURN)
            more = True
            if credit > 0:
                turn, blocks = now, self._blocks
                more = self._turn(source, min(end, now + credit))
                now = clock()
                credit -= now - turn
                if self._blocks > blocks:
                    brought[source] = brought.get(source, 0) + self._blocks - blocks
            if not ready or ready[0] is not source:  # it was removed meanwhile
                continue
            ready.popleft()
            if more:
                self._credit[source] = credit
                ready.append(source)
            else:
                self._queued.discard(source)
                self._credit.pop(source, None)
        self._flush()
        took = clock() - now
        self._charge(brought, took)
        took += now - began
        retired = self._retired
        retired.slices += 1
        retired.busy_seconds += took
        retired.longest_slice = max(retired.longest_slice, took)
        if ready and self._loop is not None and self._scheduled is None:
            if took > _OVERRUN * self.settings.slice_seconds:
                self._scheduled = self._loop.call_later(took, self._slice)
            else:
                self._after(_PASSES)

    def _after(self, passes: int) -> None:
        """The next slice, when the loop has gone round so often."""
        assert self._loop is not None
        self._scheduled = self._loop.call_soon(self._slice if passes <= 1 else partial(self._after, passes - 1))

    def _charge(self, brought: dict[Source, int], seconds: float) -> None:
        """Each publisher that has more pays for its share of what the sink took."""
        total = sum(brought.values())
        for source, blocks in brought.items():
            if source in self._credit:
                self._credit[source] -= seconds * blocks / total

    def _turn(self, source: Source, end: float) -> bool:
        """Read what waits there. False: nothing more is there."""
        more = True
        for _ in range(_STEPS):
            more = self._step(source)
            if not more or self._blocks >= _GATHERED or self.clock() >= end:
                break
        return more

    def _step(self, source: Source) -> bool:
        try:
            return source.step()
        except Exception:  # a defect while reading one publisher must not end the reading of all
            self._retired.sink_errors += 1
            self._warn("step", "reading KV events failed", trace=True)
            return False

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(_TICK, self._tick)
        now = self.clock()
        for subscription in self._all():
            subscription.tick(now)
        if self._bound is not None:
            self._bound.tick(now)

    def _warn(self, kind: str, message: str, *, trace: bool = False) -> None:
        now = self.clock()
        if now - self._logged.get(kind, -_QUIET) >= _QUIET:
            self._logged[kind] = now
            log.warning("%s (repetitions within a minute are not logged)", message, exc_info=trace)
