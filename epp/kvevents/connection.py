"""The connection to one publisher: a SUB socket, and what its monitor tells of connects and disconnects.

ZMQ connects again by itself, and tells each attempt. It gives up for ever on a peer that breaks its protocol or sends
too long a message; what has not tried again for a while is therefore connected once more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import zmq
from zmq.utils.monitor import parse_monitor_message

from epp.kvevents.host import Host, Source, subscriber
from epp.kvevents.settings import PublisherState

_RETRIES = zmq.Event.CONNECT_RETRIED | zmq.Event.CONNECT_DELAYED
_MONITORED = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED | _RETRIES
_MONITORS_AT_ONCE = 64


class Connection:
    """Wakes `owner` when there is something to `receive` or to `notice`. `connected` is called after each handshake.

    Times and counts of connections go into `state`.
    """

    def __init__(self, state: PublisherState, host: Host, owner: Source, connected: Callable[[], None]) -> None:
        self._state = state
        self._host = host
        self._owner = owner
        self._connected = connected
        self._dropped_at: float | None = None  # it ended, and ZMQ has not tried again since
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket, connected or not."""
        return self._socket is not None

    def open(self) -> bool:
        """Connect; ZMQ keeps trying until `close`. False: ZMQ refuses the address, and the state tells why."""
        host, state = self._host, self._state
        socket = subscriber(host.context, host.settings)
        monitor: zmq.Socket[bytes] = socket.get_monitor_socket(_MONITORED)
        try:
            socket.connect(state.address)
        except zmq.ZMQError as error:
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)
            state.error = f"cannot connect to {state.address!r}: {error}; expected tcp://HOST:PORT"
            state.failed("connect")
            return False
        self._socket, self._monitor = socket, monitor
        host.watch(self._owner, int(socket.getsockopt(zmq.FD)))
        host.watch(self._owner, int(monitor.getsockopt(zmq.FD)))
        host.wake(self._owner)
        return True

    def close(self) -> None:
        """Disconnect."""
        if self._socket is None or self._monitor is None:
            return
        self._host.unwatch(int(self._socket.getsockopt(zmq.FD)))
        self._host.unwatch(int(self._monitor.getsockopt(zmq.FD)))
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._socket = self._monitor = None

    def receive(self) -> list[bytes] | None:
        """The frames of the next message; None: nothing there now."""
        if self._socket is None:
            return None
        try:
            return self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def quieten(self) -> None:
        """Take the signal of messages that are not to be read now."""
        if self._socket is not None:
            self._socket.getsockopt(zmq.EVENTS)

    def notice(self) -> None:
        """What the monitor has told since."""
        if self._monitor is None:
            return
        for _ in range(_MONITORS_AT_ONCE):
            try:
                frames = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(parse_monitor_message(frames)["event"])

    def _take(self, event: int) -> None:
        state = self._state
        if event == zmq.Event.DISCONNECTED:
            state.failed("connect" if state.connected_since is None else "recv")
            state.connected_since = None
            self._dropped_at = self._host.clock()
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self._dropped_at = None
            state.connected_since = self._host.clock()
            state.connections += 1
            self._connected()
        elif event & _RETRIES:
            if event == zmq.Event.CONNECT_RETRIED:  # told when it is planned
                state.reconnections += 1
                if self._dropped_at is None:  # not the first one after a connection, whose end is counted
                    state.failed("connect")
            self._dropped_at = None

    def tick(self, now: float) -> None:
        """Connect again where ZMQ does not: a server may do better now."""
        if self._dropped_at is None or now - self._dropped_at < self._host.settings.reconnect_limit:
            return
        self._dropped_at = now
        self._state.reconnections += 1
        if self._socket is not None:
            with suppress(zmq.ZMQError):  # it may have forgotten the address already
                self._socket.disconnect(self._state.address)
            self._socket.connect(self._state.address)
