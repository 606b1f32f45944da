"""Asking a publisher for what was missed: a DEALER that talks to its ROUTER.

Request: `["", start (8 bytes, big-endian)]`. Answers, one for each message from `start` on that is still in the buffer:
`["", topic, sequence, payload]` (vLLM from 0.26) or `["", sequence, payload]` (before, and SGLang), then an end mark
whose sequence is ff x 8. Some publishers leave out the empty first frame of an answer.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import zmq

from epp.kvevents.settings import ReceiverSettings

END = (1 << 64) - 1
"""Sequence number of the end mark."""


class Answer(NamedTuple):
    """`seq` is `END` at the end."""

    seq: int
    payload: bytes


def read_answer(frames: list[bytes]) -> Answer | None:
    """An answer in any of the layouts; None when it is none of them."""
    if len(frames) < 2 or len(frames) > 4 or len(frames[-2]) != 8:
        return None
    return Answer(int.from_bytes(frames[-2], "big"), frames[-1])


class ReplayConversation:
    """One replay: `ask`, then `receive` until the end mark. It may be asked again, from further on."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, settings: ReceiverSettings) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, settings.max_message_bytes)
        self.socket.setsockopt(zmq.RCVHWM, settings.replay_queue)
        self.socket.setsockopt(zmq.RECONNECT_IVL, int(settings.reconnect * 1000))
        try:
            self.socket.connect(address)
        except zmq.ZMQError:
            self.socket.close(0)
            raise

    @property
    def descriptor(self) -> int:
        """Readable when something may have arrived; edge-triggered, so `receive` until it returns None."""
        return int(self.socket.getsockopt(zmq.FD))

    @property
    def waiting(self) -> bool:
        """An answer is there to be received."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def ask(self, start: int) -> None:
        """Request everything from `start` on. zmq.ZMQError when the request cannot be queued."""
        self.socket.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)

    def receive(self) -> list[bytes] | None:
        """The frames of the next answer; None: nothing there now."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def close(self) -> None:
        """Forget what is still on its way."""
        self.socket.close(0)


class ReplayPlan(msgspec.Struct):
    """A replay that waits or runs. `rebuild`: from 0, over what is there; else from the last message on."""

    rebuild: bool
    clear: str = "never"  # before the first answer of a rebuild: "never", "always", "if-complete" (it begins with 0)
    held: tuple[int, bytes] | None = None
    full: bool = False  # it began as a rebuild
    conversation: ReplayConversation | None = None
    started: float = 0.0
    heard: float = 0.0
    start: int = 0
    first: bool = True
    again: bool = False
    missing: int = 0  # messages that live events left out while it waited or ran from 0, and that it may bring
    reconnected: bool = False  # while it ran: its answers may be those of a process that is gone
