"""The narrow door between the transport and what it carries: a handler gets a call and gives a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol


class CloseReason(Enum):
    """Why a stream ended."""

    FINISHED = "finished"
    """The trailers have been written."""
    RESET = "reset"
    """The peer reset the stream."""
    DISCONNECTED = "disconnected"
    """The connection is gone."""
    ABORTED = "aborted"
    """We ended it early: `abort`, a deadline, a failing handler, a protocol error, the end of the server."""


class Call(Protocol):
    """One gRPC call, as the handler sees it. All methods run on the event loop and return at once."""

    path: str
    metadata: Sequence[tuple[bytes, bytes]]
    peer: str
    aborted: int | None
    """The status that it was aborted with; None: it was not."""

    def send(self, message: bytes) -> None:
        """Queue one gRPC message (without its 5-byte prefix). Ignored after `finish` and after the end."""

    def finish(self, code: int = 0, message: str = "") -> None:
        """Write the trailers after everything queued. Later calls do nothing."""

    def abort(self, code: int, message: str) -> None:
        """Drop what is unsent and write the trailers at once."""

    @property
    def unsent(self) -> int:
        """Bytes queued for the peer that its flow-control window does not admit yet."""


class Stream(Protocol):
    """The handler's side of a call."""

    def receive(self, message: bytes) -> None:
        """One complete gRPC message."""

    def half_closed(self) -> None:
        """The client will send no more."""

    def closed(self, reason: CloseReason) -> None:
        """The end; called exactly once."""


Handler = Callable[[Call], Stream]


class TlsError(Exception):
    """The peer does not speak TLS as we require; the connection is closed."""


class TlsCodec(Protocol):
    """TLS without a socket: bytes from the wire in, bytes for the wire out."""

    handshake_done: bool
    alpn: str | None

    def feed(self, ciphertext: bytes) -> list[bytes]:
        """Plaintext that became readable. Raises `TlsError`; `take` may then hold an alert to send."""

    def seal(self, plaintext: bytes) -> None:
        """Encrypt; `take` gives the result."""

    def take(self) -> bytes:
        """Ciphertext to write, handshake messages included."""

    def close(self) -> None:
        """Send close_notify (`take` holds it)."""


TlsFactory = Callable[[], TlsCodec]
