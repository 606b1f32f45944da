"""Limits of the receiver, and what it tells about itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from epp.kvevents.decoding import MAX_MESSAGE_BYTES, DecodeStats

OPERATIONS = ("connect", "recv", "replay-connect", "replay-send", "replay-incomplete", "replay-no-progress")
"""What fails with a publisher, in llm-d-router's names: an attempt to connect; an established connection, which ended;
and a replay, which has failed for one of four reasons."""


@dataclass(frozen=True, slots=True)
class Publisher:
    """Where one data-parallel rank of an endpoint publishes. Addresses as ZMQ writes them: `tcp://10.0.0.7:5557`.

    `replay` None: lost messages cannot be asked for again.
    """

    events: str
    replay: str | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """Times in seconds.

    `topic_filter`: prefix of the topics to subscribe to; empty takes all (SGLang publishes without a topic by default).
    `slice_seconds`: how long events are read before requests get their turn again.
    `receive_queue`: messages that wait per publisher while it is not their turn; more stay with the publisher, which
    keeps 100 000 and then drops the newest, and that is seen as a gap. ZMQ counts messages, not bytes, so it is small:
    memory per publisher is at most this times `max_message_bytes`, and a real batch is a hundred times smaller.
    Replays as llm-d-router limits them: `replay_limit` in all, `replay_cooldown` between two of one publisher (doubled
    with each failure, up to `replay_backoff_limit`), `concurrent_replays` at once. A new connection or process is asked
    without that pause, once in `replay_cooldown`: what it was asked before it says nothing of what it holds now.
    `replay_patience`: how long a silent replay port is waited for, because meanwhile the events of this publisher wait
    too; a healthy one answers in 0.1 s.
    `reconnect`, `reconnect_limit`: wait before the first and the longest between further attempts.
    `heartbeat`, `heartbeat_timeout`: how often an idle connection is probed, and when it counts as dead.
    """

    topic_filter: str = "kv@"
    slice_seconds: float = 0.001
    receive_queue: int = 64
    max_message_bytes: int = MAX_MESSAGE_BYTES
    replay_queue: int = 256
    replay_limit: float = 120.0
    replay_patience: float = 5.0
    replay_cooldown: float = 30.0
    replay_backoff_limit: float = 600.0
    concurrent_replays: int = 8
    reconnect: float = 0.1
    reconnect_limit: float = 5.0
    heartbeat: float = 10.0
    heartbeat_timeout: float = 30.0


@dataclass(slots=True)
class PublisherState:
    """One publisher, for `/debug` and metrics. Times by the receiver's clock, in seconds; None: never.

    `status`: "connecting", "syncing" (the first replay is awaited or runs), "catching-up" (a replay closes a gap),
    "live", "failed" (the address cannot be used: `error`). `lag`: seconds from the publisher's stamp to our reading of
    the last live batch; a wrong clock on either side shows here. `lost`: messages that no replay brought back.
    `bad_frames` of live messages and of answers to replays (`bad_answers`, those alone). `reconnections`: attempts to
    connect again, those that failed included. `zmq_errors` by operation, all of `OPERATIONS`.
    """

    endpoint: str
    rank: int
    address: str
    replay_address: str | None
    status: str = "connecting"
    error: str = ""
    topic: str = ""
    connected_since: float | None = None
    connections: int = 0
    last_seq: int | None = None
    last_event_at: float | None = None
    lag: float = 0.0
    messages: int = 0
    bytes: int = 0
    duplicates: int = 0
    bad_frames: int = 0
    bad_answers: int = 0
    gaps: int = 0
    lost: int = 0
    restarts: int = 0
    replays: int = 0
    replays_failed: int = 0
    replayed: int = 0
    sink_errors: int = 0
    reconnections: int = 0
    zmq_errors: dict[str, int] = field(default_factory=dict)
    decode: DecodeStats = field(default_factory=DecodeStats)

    @property
    def received(self) -> int:
        """Live messages, those without the frames of one included."""
        return self.messages + self.bad_frames - self.bad_answers

    def failed(self, operation: str) -> None:
        """Count a failure of one of `OPERATIONS`."""
        self.zmq_errors[operation] = self.zmq_errors.get(operation, 0) + 1


@dataclass(slots=True)
class ReceiverStats:
    """Sums over all publishers since the start, those that are gone included. Counters, except for the first five."""

    endpoints: int = 0
    publishers: int = 0
    connected: int = 0
    replaying: int = 0
    lag: float = 0.0  # the largest of the publishers that are connected
    messages: int = 0
    bytes: int = 0
    duplicates: int = 0
    bad_frames: int = 0
    unknown_topics: int = 0
    gaps: int = 0
    lost: int = 0
    restarts: int = 0
    replays: int = 0
    replays_failed: int = 0
    replayed: int = 0
    sink_errors: int = 0
    slices: int = 0
    busy_seconds: float = 0.0
    longest_slice: float = 0.0
    decode: DecodeStats = field(default_factory=DecodeStats)

    def add(self, state: PublisherState) -> None:
        """Add the counters of one publisher."""
        self.messages += state.messages
        self.bytes += state.bytes
        self.duplicates += state.duplicates
        self.bad_frames += state.bad_frames
        self.gaps += state.gaps
        self.lost += state.lost
        self.restarts += state.restarts
        self.replays += state.replays
        self.replays_failed += state.replays_failed
        self.replayed += state.replayed
        self.sink_errors += state.sink_errors
        self.decode.add(state.decode)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the warm start is: `synced` of `total` publishers are as current as they can be.

    A publisher without a replay port counts as synced at once, one whose replay failed when it has failed.
    """

    total: int
    synced: int

    @property
    def ready(self) -> bool:
        """Nothing more to wait for."""
        return self.synced >= self.total
