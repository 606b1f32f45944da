"""One publisher: its subscription, its place in the sequence, and the replays that repair it.

`step` does one piece of work and returns; the receiver calls it in turn with all others. While a replay runs, the live
stream waits unread in its socket, whose queue is bounded: order is kept, and nothing is held twice. A first replay and
a full rebuild leave the live stream running until their first answer, since they start over with everything anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

import zmq

from epp.kvevents.connection import Connection
from epp.kvevents.decoding import MAX_WHOLE_BYTES, Batch, Decoder
from epp.kvevents.host import Host
from epp.kvevents.replay import END, ReplayConversation, ReplayPlan, read_answer
from epp.kvevents.sequence import SequenceTracker, Step
from epp.kvevents.settings import Publisher, PublisherState


class Subscription:
    """What one publisher tells, through one connection."""

    def __init__(self, endpoint: str, publisher: Publisher, host: Host) -> None:
        self.state = PublisherState(endpoint, publisher.rank, publisher.events, publisher.replay)
        self.synced = publisher.replay is None
        """The first replay is done, has failed, or is not possible."""
        self.tracker = SequenceTracker()
        self._host = host
        self._decoder = Decoder(self.state.decode)
        self._pieces: Iterator[Batch] | None = None
        self._plan: ReplayPlan | None = None
        self._damaged = False  # something is to be repaired by a replay, as soon as one may run
        self._torn = False  # events are missing between those that were applied
        self._told = -1  # up to this number of the present process events may be applied for a second time
        self._doubtful = False  # such, or those after a loss, are in `_pieces`
        self._refill = False  # what is to be repaired is another rank's doing
        self._failures = 0
        self._replay_at = 0.0
        self._renewed_at: float | None = None
        self._connection = Connection(self.state, host, self, self._connected)

    def open(self) -> None:
        """Connect, until `close`. An address that ZMQ refuses is told in the state."""
        if not self._connection.open():
            self.state.status = "failed"
            self.synced = True

    def close(self) -> None:
        """Disconnect; the state stays readable."""
        self._abandon_replay()
        self._connection.close()

    @property
    def replaying(self) -> bool:
        """A replay waits or runs."""
        return self._plan is not None

    def signalled(self) -> None:
        """A descriptor is readable: notice connections, and quieten the socket if it is not to be read now."""
        self._connection.notice()
        if self._holding():
            self._connection.quieten()

    def step(self) -> bool:
        """One message, or one event of a long message. False: nothing to do until a signal."""
        if self._pieces is not None:
            batch = next(self._pieces, None)
            if batch is None:
                self._pieces = None
            else:
                self._host.apply(self.state, batch.doubtful() if self._doubtful else batch)
            return True
        plan = self._plan
        if plan is not None and plan.conversation is not None:
            frames = plan.conversation.receive()
            if frames is not None:
                self._take_answer(plan, frames)
                return True
        if self._holding():
            return False
        frames = self._connection.receive()
        if frames is None:
            return False
        self._take_live(frames)
        return True

    def tick(self, now: float) -> None:
        """Time limits, and the repair of what is damaged. Call it once a second or so."""
        plan = self._plan
        self._connection.tick(now)
        if plan is None:
            connected = self.state.connected_since is not None
            if self._damaged and self.state.replay_address and connected and now >= self._replay_at:
                self._plan_replay(ReplayPlan(rebuild=True, clear="never" if self._refill else "always"))
        elif plan.conversation is not None and self._pieces is None:  # what is half read is not to be overtaken
            settings = self._host.settings
            waiting = plan.conversation.waiting
            if not waiting and now - plan.heard > settings.replay_patience:
                self._end_replay(plan, failed="replay-no-progress")
            elif now - plan.started > settings.replay_limit:
                self._end_replay(plan, failed="replay-incomplete")
        self._host.wake(self)  # should a signal ever get lost, this finds it

    def refill(self) -> None:
        """Another rank cleared the endpoint: tell again what this one holds."""
        if self.state.replay_address and self._plan is None:
            self._damaged = self._refill = True
            self._replay_at = 0.0

    def begin_replay(self) -> None:
        """A replay may run now."""
        plan, address = self._plan, self.state.replay_address
        if plan is None or address is None:
            self._host.release_replay(self)
            return
        self.state.replays += 1
        plan.started = plan.heard = self._host.clock()
        try:
            plan.conversation = ReplayConversation(self._host.context, address, self._host.settings)
            self._host.watch(self, plan.conversation.descriptor)
            self._ask(plan)
        except zmq.ZMQError as error:
            self.state.error = f"cannot ask {address!r} for a replay: {error}; expected tcp://HOST:PORT"
            self._end_replay(plan, failed="replay-connect" if plan.conversation is None else "replay-send")

    def _holding(self) -> bool:
        plan = self._plan
        return plan is not None and not plan.rebuild

    def _take_live(self, frames: list[bytes]) -> None:
        state = self.state
        if len(frames) != 3 or len(frames[1]) != 8:
            state.bad_frames += 1
            return
        topic, number, payload = frames
        state.messages += 1
        state.bytes += len(payload)
        if not state.topic:
            state.topic = topic[:256].decode("utf-8", "replace")
        seq = int.from_bytes(number, "big")
        match self.tracker.live(seq, payload):
            case Step.APPLY:
                self._apply(seq, payload, live=True)
            case Step.SKIP:
                state.duplicates += 1
            case Step.GAP:
                self._gap(seq, payload)
            case Step.RESTART:
                self._restart()
                if seq and self._may_replay():
                    self._plan_replay(ReplayPlan(rebuild=False, held=(seq, payload)))
                else:
                    self._lose(seq)
                    self._apply(seq, payload, live=True)

    def _gap(self, seq: int, payload: bytes) -> None:
        last = self.tracker.last
        if last is None and self.state.replay_address is None:
            self._apply(seq, payload, live=True)  # joined in the middle: nothing else is possible
            return
        missing = seq if last is None else seq - last - 1
        self.state.gaps += 1
        if self._may_replay():
            self._plan_replay(ReplayPlan(rebuild=False, held=(seq, payload)))
            return
        self._lose(missing)
        self._apply(seq, payload, live=True)

    def _lose(self, messages: int) -> None:
        if self._plan is not None and self._plan.full:
            self._plan.missing += messages
        else:
            self.state.lost += messages
        if messages > 0:
            self._damaged = self._torn = True

    def _restart(self) -> None:
        self.state.restarts += 1
        self._renewed()
        self._forget()

    def _renewed(self) -> None:
        """A new connection or process: the pause after a replay was for the former one. Not often, it may flap."""
        now = self._host.clock()
        if self._renewed_at is None or now - self._renewed_at >= self._host.settings.replay_cooldown:
            self._renewed_at = now
            self._replay_at = 0.0

    def _forget(self) -> None:
        self._damaged = self._torn = False
        self._told = -1
        self.tracker.restarted()
        self._decoder.forget()
        self._host.clear(self)

    def _may_replay(self) -> bool:
        return self._plan is None and self.state.replay_address is not None and self._host.clock() >= self._replay_at

    def _plan_replay(self, plan: ReplayPlan) -> None:
        plan.full = plan.rebuild
        self._plan = plan
        self._host.acquire_replay(self)

    def _ask(self, plan: ReplayPlan) -> None:
        assert plan.conversation is not None
        last = self.tracker.last
        plan.start = 0 if plan.rebuild or last is None else last
        plan.first, plan.again = True, False
        plan.conversation.ask(plan.start)
        self._host.wake(self)  # sending may have swallowed the signal of an answer

    def _take_answer(self, plan: ReplayPlan, frames: list[bytes]) -> None:
        answer = read_answer(frames)
        if answer is None:
            self.state.bad_frames += 1
            self.state.bad_answers += 1
            return
        plan.heard = self._host.clock()
        if answer.seq == END:
            self._end_of_answers(plan)
            return
        first, plan.first = plan.first, False
        if plan.rebuild and first:
            last = self.tracker.last
            # Live events were applied while the replay waited, and some were lost that it does not bring.
            torn = answer.seq > 0 and (self._torn or (last is not None and answer.seq > last + 1))
            if plan.clear == "always" or torn or (plan.clear == "if-complete" and answer.seq == 0):
                self._forget()
            elif last is not None:
                self._told = last
            self.tracker.restarted()
            self.tracker.replaced()  # it may be: nothing is compared with the former process here
            plan.rebuild = False  # from here on a broken answer is continued where it broke
        if plan.again:
            return
        seq, payload = answer
        match self.tracker.replayed(seq, payload, first=first):
            case Step.APPLY:
                self.state.replayed += 1
                self._apply(seq, payload)
            case Step.SKIP:
                pass
            case Step.RESTART:
                self._restart()
                self.tracker.replaced()
                plan.again = True
            case Step.GAP if first:  # the publisher's buffer begins later: what is known may be outdated
                self._lose(seq - (self.tracker.last or 0) - 1)
                self._forget()
                self.state.replayed += 1
                self._apply(seq, payload)
            case Step.GAP:  # the socket dropped answers: go on from here
                plan.again = True

    def _end_of_answers(self, plan: ReplayPlan) -> None:
        last = self.tracker.last
        if plan.first and plan.rebuild:  # the publisher has published nothing yet
            if plan.clear != "never" and not self.state.messages:
                self._forget()
        elif plan.first and last is not None:  # the last message known is unknown there: it is another process
            self._restart()
            self.tracker.replaced()
            plan.again = True
        elif plan.again and last == plan.start and last is not None:
            self._end_replay(plan, failed="replay-incomplete")
            return
        if not plan.again:
            self._end_replay(plan)
            return
        try:
            self._ask(plan)
        except zmq.ZMQError:
            self._end_replay(plan, failed="replay-send")

    def _end_replay(self, plan: ReplayPlan, *, failed: str = "") -> None:
        """`failed`: which of `OPERATIONS` did; empty: all is there."""
        success = not failed
        host = self._host
        self._close_conversation(plan)
        self._plan = None
        host.release_replay(self)
        settings = host.settings
        if success:
            if plan.full:  # any other replay repairs one gap, not what was lost before it
                self._damaged = self._refill = self._torn = False
            self._damaged = self._damaged or plan.reconnected
            self._failures = 0
        else:
            self.state.replays_failed += 1
            self.state.failed(failed)
            self.state.lost += plan.missing
            self._failures += 1
            self._damaged = True
        if self.synced or not success:  # the very first replay may be followed by one that closes the seam at once
            wait = settings.replay_cooldown * 2 ** min(self._failures, 16)
            self._replay_at = host.clock() + min(max(wait, settings.replay_cooldown), settings.replay_backoff_limit)
        self.synced = True
        if plan.held is not None:
            seq, payload = plan.held
            last = self.tracker.last
            step = self.tracker.held(seq)
            if step is Step.SKIP:
                self.state.duplicates += 1
            else:
                if step is Step.GAP or (last is None and not success):
                    self._lose(seq if last is None else seq - last - 1)
                self._apply(seq, payload)
        host.wake(self)

    def _abandon_replay(self) -> None:
        plan, self._plan = self._plan, None
        if plan is not None:
            self.state.lost += plan.missing
            self._close_conversation(plan)
            self._host.release_replay(self)

    def _close_conversation(self, plan: ReplayPlan) -> None:
        if plan.conversation is not None:
            self._host.unwatch(plan.conversation.descriptor)
            plan.conversation.close()
            plan.conversation = None

    def _apply(self, seq: int, payload: bytes, *, live: bool = False) -> None:
        self.tracker.applied(seq, payload)
        state, host = self.state, self._host
        state.last_seq = seq
        state.last_event_at = host.clock()
        self._doubtful = self._torn or seq <= self._told
        if len(payload) > MAX_WHOLE_BYTES:
            self._pieces = self._decoder.pieces(payload)
            return
        batch = self._decoder.decode(payload)
        if batch is None:
            return
        if live:
            state.lag = host.wall_clock() - batch.timestamp
        if batch.events:
            host.apply(state, batch.doubtful() if self._doubtful else batch)

    def _connected(self) -> None:
        if self._plan is not None:
            self._plan.reconnected = True
            return
        if self.state.replay_address is None:
            return
        if not self.synced:
            shared = self._host.shares_endpoint(self)
            self._plan_replay(ReplayPlan(rebuild=True, clear="never" if shared else "if-complete"))
            return
        self._renewed()
        if self._may_replay() and not self._damaged:
            # What was published while nobody listened, if it is the same process at all.
            self._plan_replay(ReplayPlan(rebuild=False))
        else:
            self._damaged = True

    def refresh_status(self) -> PublisherState:
        """The state, with `status` as of now."""
        state = self.state
        if not self._connection.is_open:
            state.status = "failed"
        elif state.connected_since is None:
            state.status = "connecting"
        elif self._plan is not None:
            state.status = "catching-up" if self.synced else "syncing"
        else:
            state.status = "live"
        return state
