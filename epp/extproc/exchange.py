"""One HTTP request as its ext_proc stream tells it: a state machine without sockets or tasks.

`feed` takes the bytes of one gRPC message and returns the bytes of the replies, in order. When the director has to
wait, `pending` is what to await, and `resolve` takes its outcome; what arrives meanwhile is handled afterwards, in
order. `finished` says when and how the call is to end: after the replies of that same call.

What it promises, whatever comes: a request is answered (decision, `ImmediateResponse`, or a gRPC error when the
gateway broke the protocol), a stream is never closed with OK before that, and a flight ends exactly once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, cast

from epp.api.errors import Internal, RequestError
from epp.api.request import TerminationCause
from epp.director.flight import Flight, RequestHead
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc import replies
from epp.extproc.codec import Incoming, InvalidMessage, decode
from epp.extproc.request_phase import Carrier, RequestPhase
from epp.extproc.response_phase import ResponsePhase
from epp.extproc.settings import ExchangeContext
from epp.extproc.wire import (
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
)

OK: Final = 0
INVALID_ARGUMENT: Final = 3
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_ANSWER: Final = frozenset({RESPONSE_HEADERS, RESPONSE_BODY, RESPONSE_TRAILERS})
_DECIDED_WITHOUT_BODY: Final = frozenset({pb.NONE, pb.STREAMED})


class Exchange:
    """One stream. `pending` and `finished` are to be looked at after every call."""

    __slots__ = (
        "_carrier",
        "_context",
        "_half_closed",
        "_queue",
        "_relay",
        "_request",
        "_response",
        "_response_mode",
        "finished",
        "pending",
    )

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        self._request: RequestPhase | None = None
        self._response: ResponsePhase | None = None
        self._relay: Callable[[bytes], list[bytes] | None] | None = None
        self._response_mode: int | None = None
        self._carrier = Carrier.HEADERS
        self._queue: list[Incoming] | None = None
        self._half_closed = False
        self.pending: Awaitable[Flight] | None = None
        self.finished: tuple[int, str] | None = None

    def feed(self, message: bytes) -> list[bytes]:
        """The replies to one message, in order; none when there is nothing to say yet."""
        if self._relay is not None:
            told = self._relay(message)
            if told is not None:
                return told
        if self.finished is not None:
            return []
        try:
            incoming = decode(message, self._context.known_headers)
        except InvalidMessage as error:
            return self._violated(str(error))
        if incoming.kind == REQUEST_BODY and self._request is not None:
            too_large = self._request.count(incoming)
            if too_large is not None:
                return self._refuse_ourselves(too_large)
        if self.pending is not None and incoming.kind not in _ANSWER:
            return self._enqueue(incoming)
        return self._handle(incoming)

    def resolve(self, flight: Flight | None, error: BaseException | None = None) -> list[bytes]:
        """`pending` has an outcome: the flight, or the error it raised."""
        if self.finished is not None or self.pending is None:  # nobody waits for it any more
            if flight is not None:
                ResponsePhase(self._context, flight, None).close(TerminationCause.CLIENT_DISCONNECT)
            return []
        self.pending = None
        if flight is not None:
            told = self._guarded(lambda: self._decided(flight))
        elif isinstance(error, RequestError):
            told = self._refuse(error)
        else:
            told = self._failed(error or RuntimeError("the decision has neither a flight nor an error"))
        queue, self._queue = self._queue, None
        for incoming in queue or ():
            if self.finished is not None:
                break
            told += self._handle(incoming)
        if self._half_closed:
            self._hang_up()
        return told

    def half_close(self) -> list[bytes]:
        """The gateway will send no more; the stream is finished, unless an answer to its request is still pending.

        Only a gateway that told its modes is known to keep the stream open until the answer has ended. One that did
        not (NGINX Gateway Fabric) waits for the replies, and reads until the stream ends.
        """
        self._half_closed = True
        if self.finished is not None:
            return []
        request = self._request
        told: list[bytes] = []
        if request is None:
            self.finished = OK, ""
        elif self._response is None:
            if request.mode is not None:
                return self._gone()
            if self.pending is None:
                told = self._guarded(lambda: self._decide(Carrier.HEADERS))
        self._hang_up()
        return told

    def close(self, *, lost: bool = False) -> None:
        """The stream is over: reset by the gateway, or `lost` with its connection or by our own failure."""
        self.pending = None
        self._queue = None
        response = self._response
        if response is not None:
            if lost:
                response.close(TerminationCause.ERROR)
            else:
                response.half_closed()
        if self.finished is None:
            self.finished = UNAVAILABLE, "the stream was closed"

    @property
    def complete(self) -> bool:
        """Whether nothing is left to tell: the answer has ended, or the gateway was to send nothing more of it."""
        response = self._response
        return response is not None and (response.ended or response.quiet)

    def _hang_up(self) -> None:
        """After the half-close, and with everything answered."""
        if self.finished is None and self.pending is None and self._response is not None:
            self._response.half_closed()
            self.finished = OK, ""

    def _gone(self) -> list[bytes]:
        self.pending = None
        self._queue = None
        self.finished = UNAVAILABLE, "the client went away before its request was answered"
        return []

    def _guarded(self, act: Callable[[], list[bytes]]) -> list[bytes]:
        try:
            return act()
        except Exception as error:
            return self._failed(error)

    def _handle(self, incoming: Incoming) -> list[bytes]:
        kind = incoming.kind
        try:
            if kind in _ANSWER:
                return self._answer(incoming)
            if kind == REQUEST_HEADERS:
                return self._request_headers(incoming)
            if kind in (REQUEST_BODY, REQUEST_TRAILERS):
                return self._rest_of_request(incoming)
            return []  # a message of a later version of the protocol: flow control and the like
        except Exception as error:
            response = self._response
            if response is not None and kind in _ANSWER:
                self._relay = None
                return response.passthrough(incoming, error)
            return self._failed(error)

    def _request_headers(self, incoming: Incoming) -> list[bytes]:
        if self._request is not None:
            return self._violated("a second request_headers")
        request = self._request = RequestPhase(self._context, incoming)
        self._response_mode = request.response_mode
        too_large = request.announced_too_large()
        if too_large is not None:
            return self._refuse_ourselves(too_large)
        if incoming.end_of_stream or request.mode in _DECIDED_WITHOUT_BODY:
            return self._decide(Carrier.HEADERS)
        return [] if request.deferred else [replies.PLAIN_REQUEST_HEADERS]

    def _rest_of_request(self, incoming: Incoming) -> list[bytes]:
        """A piece of the body, or trailers."""
        request = self._request
        if request is None:
            return self._violated(f"{incoming.name} before request_headers")
        if request.answered:
            return self._after_decision(request, incoming)
        request.add(incoming)
        if incoming.kind == REQUEST_TRAILERS:
            request.by_trailers = True
            return self._decide(Carrier.HEADERS if request.deferred else Carrier.TRAILERS)
        if request.deferred:
            return self._decide(Carrier.HEADERS) if incoming.end_of_stream else []
        return self._decide(Carrier.BODY, readable=request.complete(incoming.end_of_stream))

    def _after_decision(self, request: RequestPhase, incoming: Incoming) -> list[bytes]:
        """In full duplex everything has been told, and a second, empty end is no harm. Else each message gets its
        reply: a plain one, it passes as it is."""
        if request.deferred:
            return self._violated("request_body behind the end of the request") if incoming.body else []
        if incoming.kind == REQUEST_TRAILERS:
            return [replies.PLAIN_REQUEST_TRAILERS]
        return [replies.PLAIN_REQUEST_BODY]

    def _decide(self, carrier: Carrier, *, readable: bool = True) -> list[bytes]:
        request = self._request
        assert request is not None
        self._carrier = carrier
        body = request.gather()
        director = self._context.director
        try:
            if body and readable:
                result = director.decide(request.head, body)
            else:
                result = director.decide_without_body(request.head)
        except RequestError as error:
            return self._refuse(error)
        if hasattr(result, "__await__"):  # isinstance would ask the abstract class, in many more steps
            self.pending = cast("Awaitable[Flight]", result)
            return []
        return self._decided(result)

    def _decided(self, flight: Flight) -> list[bytes]:
        request = self._request
        assert request is not None
        response = self._response = ResponsePhase(self._context, flight, self._response_mode)
        told = request.replies(flight.decision, self._carrier)
        request.let_go()
        if self._context.settings.bypass_response or flight.decision.skip_response:
            response.close(TerminationCause.NATURAL)
            self.finished = OK, ""
        return told

    def _enqueue(self, incoming: Incoming) -> list[bytes]:
        """A message of the request while the decision is pending. Its bytes are bounded with those of the body."""
        if self._queue is None:
            self._queue = []
        if len(self._queue) >= self._context.settings.queued_messages:
            return self._violated("too many messages while the decision is pending")
        self._queue.append(incoming)
        return []

    def _answer(self, incoming: Incoming) -> list[bytes]:
        response = self._response
        if response is None:
            if self._request is None:
                return self._violated(f"{incoming.name} before request_headers")
            # The gateway answers by itself before we decided (another filter refused, a limit): it only passes here.
            self.pending = None
            self._queue = None
            self._request.let_go()
            response = self._response = ResponsePhase(self._context, None, self._response_mode)
        if incoming.kind == RESPONSE_HEADERS:
            if response.started or response.ended:
                return self._violated("response_headers out of order")
            return response.headers(incoming)
        if response.ended:
            told = response.after_end(incoming)
            return self._violated("response_body behind the end of the response") if told is None else told
        if incoming.kind == RESPONSE_TRAILERS:
            return response.trailers()
        told = response.body(incoming)
        self._relay = response.chunk
        return told

    def _refuse_ourselves(self, error: RequestError) -> list[bytes]:
        head: RequestHead | None = None if self._request is None else self._request.head
        try:
            self._context.director.refused(head, error)
        except Exception as failure:
            self._report(failure)
        return self._refuse(error)

    def _refuse(self, error: RequestError) -> list[bytes]:
        """The picker answers instead of a server; that is the end of the stream too."""
        self._drop()
        self.finished = OK, ""
        return [replies.immediate(error)]

    def _violated(self, problem: str) -> list[bytes]:
        self._context.observer.violated(problem)
        self._drop()
        self.finished = INVALID_ARGUMENT, f"ext_proc: {problem}"
        return []

    def _failed(self, error: BaseException) -> list[bytes]:
        """A bug of ours, or of a part that must not fail."""
        self._report(error)
        if self._request is not None and self._request.answered:
            self._drop()
            self.finished = INTERNAL, f"the picker failed: {type(error).__name__}"
            return []
        return self._refuse_ourselves(Internal(f"the picker failed: {type(error).__name__}: {error}"))

    def _report(self, error: BaseException) -> None:
        self._context.observer.failed(error)

    def _drop(self) -> None:
        """Nothing of this stream matters any more."""
        self.pending = None
        self._queue = None
        self._relay = None
        if self._request is not None:
            self._request.let_go()
        if self._response is not None:
            self._response.close(TerminationCause.ERROR)
