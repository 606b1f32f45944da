"""Between the receiver and what it reads: what a source of events does, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import zmq

from epp.api.plugin import Clock
from epp.kvevents.decoding import Batch
from epp.kvevents.settings import PublisherState, ReceiverSettings

if TYPE_CHECKING:
    from epp.kvevents.publisher import Subscription


class Source(Protocol):
    """Something that is read in slices."""

    def step(self) -> bool:
        """One piece of work; False when there is none."""

    def signalled(self) -> None:
        """A descriptor became readable."""

    def tick(self, now: float) -> None:
        """About once a second."""

    def close(self) -> None:
        """Free the sockets."""


class Host(Protocol):
    """What a publisher needs of the receiver."""

    context: zmq.Context[zmq.Socket[bytes]]
    settings: ReceiverSettings
    clock: Clock
    wall_clock: Clock
    resolve: Callable[[str, int], str | None]

    def apply(self, state: PublisherState, batch: Batch) -> None:
        """Give events to the sink."""

    def clear(self, subscription: Subscription) -> None:
        """The endpoint's cache is not what was told so far."""

    def shares_endpoint(self, subscription: Subscription) -> bool:
        """Other ranks publish for the same endpoint."""

    def clear_endpoint(self, endpoint: str) -> None:
        """As `clear`, for an endpoint without subscriptions of its own."""

    def watch(self, source: Source, descriptor: int) -> None:
        """Wake the source when the descriptor is readable."""

    def unwatch(self, descriptor: int) -> None:
        """The descriptor is about to be closed."""

    def wake(self, source: Source) -> None:
        """`step` has something to do."""

    def acquire_replay(self, subscription: Subscription) -> None:
        """Call `begin_replay` when one of the few replays may start."""

    def release_replay(self, subscription: Subscription) -> None:
        """The replay is over, or is not wanted any more."""


def subscriber(context: zmq.Context[zmq.Socket[bytes]], settings: ReceiverSettings) -> zmq.Socket[bytes]:
    """A SUB socket with the limits of `settings`, neither connected nor bound."""
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.RCVHWM, settings.receive_queue)
    socket.setsockopt(zmq.MAXMSGSIZE, settings.max_message_bytes)
    socket.setsockopt(zmq.RECONNECT_IVL, int(settings.reconnect * 1000))
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(settings.reconnect_limit * 1000))
    socket.setsockopt(zmq.HEARTBEAT_IVL, int(settings.heartbeat * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(settings.heartbeat_timeout * 1000))
    socket.setsockopt(zmq.SUBSCRIBE, settings.topic_filter.encode())
    return socket
