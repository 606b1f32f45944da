"""A request on its way to a decision: its head, its body, and the replies that carry the decision.

Where the decision can be told depends on how the gateway sends the body (`BodySendMode`):

- full duplex, or the gateway does not tell: nothing is answered until the body is complete; then the reply to the
  headers carries the decision, and the body is sent back behind it. Also right for NGINX Gateway Fabric, which reads
  the decision from the reply to the headers and nothing else, and has sent everything before it reads.
- buffered: the headers are answered at once, or the body never comes; the reply to the body carries the decision.
- streamed: the headers are answered at once and go to the server with that; so the decision is made without the body.
- none: the same, there is no body for us.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from epp.api.errors import PayloadTooLarge
from epp.director.flight import Decision, RequestHead
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc import replies
from epp.extproc.codec import Incoming
from epp.extproc.metadata import DESTINATION, decision_metadata
from epp.extproc.settings import ExchangeContext
from epp.extproc.wire import REQUEST_BODY, streamed_body

REQUEST_ID: Final = "x-request-id"

CONTROL_HEADERS: Final = (
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-kv-cache-source-host-port",
    "x-data-parallel-host-port",
)
"""Only the picker may set these: they make the model server's side connect to where they point. llm-d-router lets a
client's pass; here they are removed. The destination itself is always overwritten."""

_CONTROL: Final = frozenset(CONTROL_HEADERS)

_MAX_PLAIN_DECISIONS: Final = 4096
_NO_METADATA: Final = b"\x42\x00"  # an empty metadata_context, which Envoy puts behind every message
_ANSWERED_AT_ONCE: Final = frozenset({pb.NONE, pb.STREAMED, pb.BUFFERED, pb.BUFFERED_PARTIAL})


class Carrier(Enum):
    """Which message's reply carries the decision."""

    HEADERS = auto()
    BODY = auto()
    TRAILERS = auto()


class RequestPhase:
    """One request. `mode` and `response_mode`: how the gateway sends the two bodies, None when it does not tell;
    `deferred`: whether its headers wait for the decision."""

    __slots__ = (
        "_chunks",
        "_context",
        "_limit",
        "_made_id",
        "_size",
        "answered",
        "body",
        "by_trailers",
        "deferred",
        "echoes",
        "head",
        "mode",
        "response_mode",
    )

    def __init__(self, context: ExchangeContext, message: Incoming) -> None:
        headers = message.headers()
        request_id = headers.get(REQUEST_ID, "")
        self._made_id = not request_id
        if self._made_id:
            request_id = headers[REQUEST_ID] = context.make_id()
        modes = message.modes()
        self._context = context
        self._limit = context.settings.max_body_bytes
        self.mode: int | None = None
        self.response_mode: int | None = None
        if modes is not None:
            self.mode, self.response_mode = modes
        self.deferred = self.mode not in _ANSWERED_AT_ONCE
        self.head = RequestHead(
            headers=headers,
            path=headers.get(":path", ""),
            method=headers.get(":method", "POST"),
            request_id=request_id,
            received_at=context.clock(),
            subset=message.subset(),
        )
        self._chunks: list[bytes] = []
        self._size = 0
        self.body = b""
        self.by_trailers = False
        self.echoes = self.deferred and not message.end_of_stream
        self.answered = False

    @property
    def declared_length(self) -> int | None:
        """The body's length as the client announced it."""
        length = self.head.headers.get(replies.CONTENT_LENGTH, "")
        return int(length) if length.isdecimal() and len(length) < 20 else None

    def announced_too_large(self) -> PayloadTooLarge | None:
        """The refusal when the announced length exceeds the limit."""
        length = self.declared_length
        return None if length is None or length <= self._limit else self._too_large(length)

    def count(self, message: Incoming) -> PayloadTooLarge | None:
        """Take note of a piece of the body, when it arrives; the refusal when there are too many bytes by now."""
        self._size += len(message.body)
        return None if self._size <= self._limit else self._too_large(self._size)

    def _too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"request body of {size} bytes exceeds the limit of {self._limit} (--max-request-body-bytes)"
        )

    def add(self, message: Incoming) -> None:
        """Keep a piece of the body; a subset hint may come with any message."""
        if message.body:
            self._chunks.append(message.body)
        if message.rest != _NO_METADATA and self.head.subset is None:
            self.head.subset = message.subset()

    def complete(self, end_of_stream: bool) -> bool:
        """Whether a buffered body is all there.

        BUFFERED_PARTIAL cuts what exceeds the gateway's buffer. Without the end of the stream (trailers follow, or it
        was cut) the announced length tells.
        """
        return end_of_stream or self.mode != pb.BUFFERED_PARTIAL or self._size == self.declared_length

    def gather(self) -> bytes:
        """The body in one piece."""
        self.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        return self.body

    def replies(self, decision: Decision, carrier: Carrier) -> list[bytes]:
        """The decision where it belongs, with the body behind it in full duplex."""
        told = [self._decision(decision, carrier)]
        if self.echoes:
            body = self.body if decision.body is None else decision.body
            told += streamed_body(REQUEST_BODY, body, not self.by_trailers)
            if self.by_trailers:
                told.append(replies.PLAIN_REQUEST_TRAILERS)
        return told

    def let_go(self) -> None:
        """The decision is told: an answer may take minutes, and needs nothing of the request."""
        self.answered = True
        self.body = b""
        self._chunks = []

    def _decision(self, decision: Decision, carrier: Carrier) -> bytes:
        headers = self.head.headers
        spoofed = () if _CONTROL.isdisjoint(headers) else [name for name in CONTROL_HEADERS if name in headers]
        plain = (
            carrier is Carrier.HEADERS
            and not (spoofed or decision.set_headers or decision.remove_headers or self._made_id)
            and decision.body is None
            and decision.scores is None
        )
        if plain:
            known = self._context.plain_decisions.get(decision.destination)
            if known is not None:
                return known
        told = self._build(decision, carrier, spoofed)
        if plain:
            if len(self._context.plain_decisions) >= _MAX_PLAIN_DECISIONS:
                self._context.plain_decisions.clear()
            self._context.plain_decisions[decision.destination] = told
        return told

    def _build(self, decision: Decision, carrier: Carrier, spoofed: Sequence[str]) -> bytes:
        metadata = decision_metadata(decision.destination, decision.scores)
        if carrier is Carrier.TRAILERS:  # the headers are gone; what is left is the metadata
            return replies.PLAIN_REQUEST_TRAILERS + metadata
        wanted = replies.sendable(decision.set_headers, self._context.observer.failed)
        wanted[DESTINATION] = decision.destination
        if self._made_id:
            wanted.setdefault(REQUEST_ID, self.head.request_id)
        remove = [
            name for name in dict.fromkeys((*spoofed, *map(str.lower, decision.remove_headers))) if not wanted.get(name)
        ]
        if carrier is Carrier.BODY:
            return replies.decision_in_body(wanted, remove, decision.body) + metadata
        length = None if decision.body is None else len(decision.body)
        return replies.decision_in_headers(wanted, remove, length) + metadata
