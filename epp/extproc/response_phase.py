"""The answer's way past the picker: echoed, measured, read for usage, with the model's name given back.

Every path leads to one `Flight.end`. A failure in what only listens never touches the bytes: the flight ends with
`error`, and the answer passes on unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from epp.api.request import TerminationCause
from epp.director.flight import Flight
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc import replies
from epp.extproc.codec import Incoming
from epp.extproc.metadata import dynamic_metadata
from epp.extproc.restore import ModelRestorer
from epp.extproc.settings import ExchangeContext
from epp.extproc.usage import AnswerUsage, EventUsage, UsageTap
from epp.extproc.wire import (
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    chunk_span,
    echo_chunk,
    streamed_body,
)

DEBUG_HEADER: Final = "x-went-into-resp-headers"  # llm-d-router sets it on every answer; some dashboards look for it
_NEWLINE: Final = 10
_BODY_MODES_WITH_ONE_REPLY_EACH: Final = frozenset({pb.NONE, pb.STREAMED, pb.BUFFERED, pb.BUFFERED_PARTIAL})

_PASSED_HEADERS: Final = replies.response_headers({DEBUG_HEADER: "true"}, ())


class ResponsePhase:
    """One answer. `flight` None: nobody is interested (any more), and the answer only passes.

    `mode`: how the gateway sends the body (`BodySendMode`), None when it does not tell. Then, and in full duplex, each
    body byte has to be sent back; in the other modes a plain reply leaves a message as it was.
    """

    __slots__ = (
        "_body_seen",
        "_clock",
        "_context",
        "_flight",
        "_mode",
        "_restorer",
        "_streams",
        "_usage",
        "ended",
        "headers_seen",
        "started",
    )

    def __init__(self, context: ExchangeContext, flight: Flight | None, mode: int | None) -> None:
        self._context = context
        self._clock = context.clock
        self._flight = flight
        self._mode = mode
        self._streams = mode not in _BODY_MODES_WITH_ONE_REPLY_EACH
        self._usage: UsageTap | None = None
        self._restorer: ModelRestorer | None = None
        self._body_seen = False
        self.started = False
        self.headers_seen = False
        self.ended = False

    def headers(self, message: Incoming) -> list[bytes]:
        """The server answered. Headers that end the stream end the request."""
        self.started = self.headers_seen = True
        flight = self._flight
        if flight is None:
            self.ended = self.ended or message.end_of_stream
            return [replies.PLAIN_RESPONSE_HEADERS]
        headers = message.headers()
        status = headers.get(":status", "")
        self._tell(flight.response_headers, int(status) if status.isdecimal() else 0, headers, message.served())
        remove: tuple[str, ...] = ()
        if not message.end_of_stream and self._mode != pb.NONE:
            self._watch(flight, headers.get("content-type", ""), headers.get("content-encoding", ""))
            # Buffered bodies are measured when they are replaced; a body in chunks cannot be.
            if self._restorer is not None and self._mode not in (pb.BUFFERED, pb.BUFFERED_PARTIAL):
                remove = (replies.CONTENT_LENGTH,) if replies.CONTENT_LENGTH in headers else ()
        metadata = self._end(TerminationCause.NATURAL) if message.end_of_stream else b""
        return [self._passed_headers(flight.response.set_headers, remove) + metadata]

    def _passed_headers(self, wanted: Mapping[str, str], remove: tuple[str, ...]) -> bytes:
        if not wanted and not remove:
            return _PASSED_HEADERS
        try:
            told = replies.sendable(wanted, self._context.observer.failed)
            return replies.response_headers({DEBUG_HEADER: "true", **told}, remove)
        except Exception as error:  # a plugin set what is no mapping
            self._report(error)
            return replies.response_headers({DEBUG_HEADER: "true"}, remove)

    def chunk(self, message: bytes) -> list[bytes] | None:
        """The hot path, once per token: an ordinary chunk in full duplex. None: `body` has to look at it."""
        flight = self._flight
        if flight is None or not self._streams:
            return None
        span = chunk_span(message)
        if span is None:
            return None
        http_body, start, stop = span
        usage = self._usage
        try:
            flight.chunk(self._clock(), stop - start)
            if usage is not None and (
                not usage.idle or message[stop - 1] != _NEWLINE or message.find(usage.marker, start, stop) >= 0
            ):
                usage.feed(message[start:stop], flight)
        except Exception as error:
            self._lose(error)
        if self._restorer is not None:
            return streamed_body(RESPONSE_BODY, self._restorer.feed(message[start:stop], last=False), False)
        return [echo_chunk(message, http_body, stop)]

    def body(self, message: Incoming) -> list[bytes]:
        """A chunk, or the whole of a buffered body."""
        body, last = message.body, message.end_of_stream
        flight = self._flight
        if flight is not None:
            if not self._body_seen:
                self._first(flight, message)
            if body:
                self._tell(flight.chunk, self._clock(), len(body))
                if self._usage is not None:
                    self._tell(self._usage.feed, body, flight)
        self.started = self._body_seen = True
        restorer = self._restorer
        whole = last or self._mode in (pb.BUFFERED, pb.BUFFERED_PARTIAL)  # trailers may follow, but no more body
        restored = body if restorer is None else restorer.feed(body, last=whole)
        metadata = self._end(TerminationCause.NATURAL) if last else b""
        if self._streams:
            told = streamed_body(RESPONSE_BODY, restored, last)
        elif restored == body:
            told = [replies.PLAIN_RESPONSE_BODY]
        else:
            told = [self._changed(restored, last)]
        if metadata:
            told[-1] += metadata
        return told

    def _changed(self, restored: bytes, last: bool) -> bytes:
        if self._mode == pb.BUFFERED or (self._mode == pb.BUFFERED_PARTIAL and last):
            return replies.changed_response_body(restored, length=len(restored))
        # The rest of a body that exceeds the gateway's buffer follows unseen: its length is known to nobody.
        remove = (replies.CONTENT_LENGTH,) if self._mode == pb.BUFFERED_PARTIAL else ()
        return replies.changed_response_body(restored, length=None, remove=remove)

    def trailers(self) -> list[bytes]:
        """The answer ended with trailers; no body message said so."""
        self.started = True
        told: list[bytes] = []
        if self._restorer is not None:
            held = self._restorer.feed(b"", last=True)
            if self._streams:
                told = streamed_body(RESPONSE_BODY, held, False)
            elif held:
                self._report(
                    ValueError(f"trailers cut an answer in the middle of a model name: {len(held)} bytes lost")
                )
        metadata = self._end(TerminationCause.NATURAL)
        return [*told, replies.PLAIN_RESPONSE_TRAILERS + metadata]

    def after_end(self, message: Incoming) -> list[bytes] | None:
        """Body or trailers behind the end. None: bytes that nobody can place.

        A second, empty end is answered where each message wants its answer, and ignored in full duplex.
        """
        if message.kind != RESPONSE_BODY:
            return [replies.PLAIN_RESPONSE_TRAILERS]
        if not self._streams:
            return [replies.PLAIN_RESPONSE_BODY]
        return None if message.body else []

    def passthrough(self, message: Incoming, error: Exception) -> list[bytes]:
        """After a failure: what makes the gateway go on, with every byte as it came."""
        self._lose(error)
        self.started = True
        self.ended = self.ended or message.end_of_stream or message.kind == RESPONSE_TRAILERS
        if message.kind == RESPONSE_HEADERS:
            return [replies.PLAIN_RESPONSE_HEADERS]
        if message.kind == RESPONSE_TRAILERS:
            return [replies.PLAIN_RESPONSE_TRAILERS]
        if self._streams:
            return streamed_body(RESPONSE_BODY, message.body, message.end_of_stream)
        return [replies.PLAIN_RESPONSE_BODY]

    def half_closed(self) -> None:
        """The gateway will send no more: an end if it was to send nothing (`quiet`), else the client went away."""
        self.close(TerminationCause.NATURAL if self.quiet else TerminationCause.CLIENT_DISCONNECT)

    @property
    def quiet(self) -> bool:
        """Whether the end of the answer is only told by the end of the stream.

        The gateway sends no body, or it never told its modes and sent nothing of an answer: it has no response phase.
        """
        return self._mode == pb.NONE or (self._mode is None and not self.started)

    def close(self, cause: TerminationCause) -> None:
        """No more messages. Does nothing after the end."""
        if not self.ended:
            self._end(cause)

    def _first(self, flight: Flight, message: Incoming) -> None:
        served = message.served()
        if served:
            flight.response.served = served
        if self.headers_seen:
            return
        # The gateway skips response headers: the body has to tell what it is.
        streaming = message.body.startswith((b"data:", b"event:", b"id:", b":"))
        flight.response.streaming = streaming
        self._watch(flight, "text/event-stream" if streaming else "", "")

    def _watch(self, flight: Flight, content_type: str, encoding: str) -> None:
        """Prepare for the body by its type. What is compressed or no text of an engine only passes."""
        if self._mode == pb.NONE or encoding.lower() not in ("", "identity"):
            return
        content_type = content_type.lower()
        if "text/event-stream" in content_type:
            self._usage = EventUsage(self._context.settings.line_bytes)
        elif not content_type or "json" in content_type:
            self._usage = AnswerUsage(self._context.settings.answer_bytes)
        else:
            return
        if flight.decision.restore_model is not None:
            self._restorer = ModelRestorer(*flight.decision.restore_model)

    def _tell(self, listen: Callable[..., None], *arguments: Any) -> None:
        try:
            listen(*arguments)
        except Exception as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """A listener failed: its flight ends, the answer passes on without it."""
        self._report(error)
        self._finish(TerminationCause.ERROR)

    def _finish(self, cause: TerminationCause) -> Flight | None:
        flight, self._flight = self._flight, None
        if flight is not None:
            try:
                flight.end(cause)
            except Exception as error:
                self._report(error)
        self._usage = None
        return flight

    def _end(self, cause: TerminationCause) -> bytes:
        """The one end; returns the metadata that plugins want on the last reply."""
        self.ended = True
        if self._usage is not None and self._flight is not None and cause is TerminationCause.NATURAL:
            self._tell(self._usage.finish, self._flight)
        flight = self._finish(cause)
        if flight is None or not flight.response.metadata:
            return b""
        try:
            return dynamic_metadata(flight.response.metadata)
        except Exception as error:
            self._report(error)
            return b""

    def _report(self, error: Exception) -> None:
        self._context.observer.failed(error)
