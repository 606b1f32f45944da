"""The global mode: one SUB socket of ours, to which all publishers connect.

The topic `kv@ENDPOINT@MODEL` tells whose events they are. ENDPOINT is the `ip:port` of the server, or a name that the
receiver's `resolve` knows, such as a pod's. The data-parallel ranks of a server have one topic; where each is an
endpoint of its own, the rank in the message tells which. Publishers that connect cannot be asked for a replay, so a gap
is counted and what follows is taken.
"""

from __future__ import annotations

import zmq

from epp.kvevents.decoding import Decoder
from epp.kvevents.host import Host, subscriber
from epp.kvevents.sequence import SequenceTracker, Step
from epp.kvevents.settings import PublisherState

_MAX_RANKS = 256
_MAX_TOPIC = 1024
_MAX_KNOWN_TOPICS = 65536


class BoundStream:
    """One rank of one endpoint, as it comes through the shared socket."""

    def __init__(self, endpoint: str, rank: int, address: str) -> None:
        self.state = PublisherState(endpoint, rank, address, None)
        self.tracker = SequenceTracker()
        self.torn = False
        """Messages of the present process are lost."""


def topic_endpoint(topic: bytes) -> str | None:
    """ENDPOINT of `kv@ENDPOINT@MODEL`; None when the topic is not of this form."""
    if len(topic) > _MAX_TOPIC:
        return None
    parts = topic.decode("utf-8", "replace").split("@", 2)
    return parts[1] if len(parts) == 3 and parts[1] else None


class BoundSubscription:
    """A SUB socket that listens. Same manners as `Subscription`: `step` until False, then wait for a signal."""

    def __init__(self, host: Host, address: str) -> None:
        self.received = 0
        """Messages, those without the frames of one included."""
        self.unknown_topics = 0
        self.bad_frames = 0
        self.streams: dict[str, dict[int, BoundStream]] = {}
        self._host = host
        self._socket: zmq.Socket[bytes] | None = subscriber(host.context, host.settings)
        self._decoders: dict[bytes, tuple[str, Decoder]] = {}
        try:
            self._socket.bind(address)
        except zmq.ZMQError:
            self._socket.close(0)
            raise
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        host.watch(self, int(self._socket.getsockopt(zmq.FD)))
        host.wake(self)

    def close(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            self._host.unwatch(int(self._socket.getsockopt(zmq.FD)))
            self._socket.close(0)
            self._socket = None

    def forget(self, endpoint: str) -> list[PublisherState]:
        """The endpoint is gone; returns what was counted for it."""
        self._decoders = {topic: known for topic, known in self._decoders.items() if known[0] != endpoint}
        return [stream.state for stream in self.streams.pop(endpoint, {}).values()]

    def signalled(self) -> None:
        """The descriptor is readable."""

    def step(self) -> bool:
        """Read one message. False: none there."""
        if self._socket is None:
            return False
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        self.received += 1
        if len(frames) == 3 and len(frames[1]) == 8:
            self._take(*frames)
        else:
            self.bad_frames += 1
        return True

    def tick(self, now: float) -> None:
        """Should a signal ever get lost, this finds what it told."""
        self._host.wake(self)

    def _take(self, topic: bytes, number: bytes, payload: bytes) -> None:
        named = topic_endpoint(topic)
        endpoint = None if named is None else self._host.resolve(named, 0)
        if named is None or endpoint is None:
            self.unknown_topics += 1
            return
        known = self._decoders.get(topic)
        if known is None or known[0] != endpoint:
            if len(self._decoders) >= _MAX_KNOWN_TOPICS:
                self._decoders.clear()
            known = self._decoders[topic] = (endpoint, Decoder())
        decoder = known[1]
        # The rank is only in the payload, and each rank counts for itself: decode first.
        batch = decoder.decode(payload)
        rank = 0 if batch is None or not 0 <= batch.rank < _MAX_RANKS else batch.rank
        if rank:
            endpoint = self._host.resolve(named, rank) or endpoint
        streams = self.streams.setdefault(endpoint, {})
        stream = streams.get(rank)
        if stream is None:
            stream = streams[rank] = BoundStream(endpoint, rank, self.address)
            stream.state.topic = topic.decode("utf-8", "replace")
            stream.state.status = "live"
        state, tracker = stream.state, stream.tracker
        state.messages += 1
        state.bytes += len(payload)
        state.decode.add(decoder.stats)
        decoder.stats = type(decoder.stats)()
        if batch is None:
            return  # nor is its rank known, so its number tells nothing; the next one will show a gap
        seq = int.from_bytes(number, "big")
        match tracker.live(seq, payload):
            case Step.SKIP:
                state.duplicates += 1
                return
            case Step.GAP if tracker.last is not None:
                state.gaps += 1
                state.lost += seq - tracker.last - 1
                stream.torn = True
            case Step.RESTART:
                state.restarts += 1
                state.lost += seq
                stream.torn = seq > 0
                tracker.restarted()
                self._host.clear_endpoint(endpoint)
            case _:
                pass
        tracker.applied(seq, payload)
        state.last_seq = seq
        state.last_event_at = self._host.clock()
        state.lag = self._host.wall_clock() - batch.timestamp
        if batch.events:
            self._host.apply(state, batch.doubtful() if stream.torn else batch)
