"""A gateway's side of ext_proc for tests: its messages, what it makes of the replies, and a director that obeys.

Messages are built and replies read with the protobuf library, so that the hand-written codec has an independent judge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from epp.api import Endpoint, InferenceRequest, InferenceResponse, Payload, TerminationCause
from epp.api.errors import RequestError
from epp.director.flight import Decision, Flight, RequestHead
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.exchange import Exchange
from epp.extproc.settings import ExchangeContext, ExchangeSettings

ENDPOINT = Endpoint(name="pod-1", address="10.0.0.1", port=8000)
FDS = pb.FULL_DUPLEX_STREAMED


def header_map(headers: Mapping[str, str], *, in_value: bool = False) -> pb.HeaderMap:
    """Values in `raw_value` as Envoy has them, or in `value`."""
    return pb.HeaderMap(
        headers=[
            pb.HeaderValue(key=key, value=value) if in_value else pb.HeaderValue(key=key, raw_value=value.encode())
            for key, value in headers.items()
        ]
    )


def metadata(namespaces: Mapping[str, Mapping[str, Any]] | None) -> pb.Metadata | None:
    """`metadata_context`."""
    if namespaces is None:
        return None
    context = pb.Metadata()
    for namespace, fields in namespaces.items():
        context.filter_metadata[namespace].update(dict(fields))
    return context


def request_headers(
    headers: Mapping[str, str] | None = None,
    *,
    end_of_stream: bool = False,
    modes: tuple[int, int] | None = (FDS, FDS),
    in_value: bool = False,
    context: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    if headers is None:
        headers = {":method": "POST", ":path": "/v1/completions", "x-request-id": "r1"}
    message = pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=header_map(headers, in_value=in_value), end_of_stream=end_of_stream),
        metadata_context=metadata(context),
    )
    if modes is not None:
        message.protocol_config.CopyFrom(
            pb.ProtocolConfiguration(request_body_mode=modes[0], response_body_mode=modes[1])
        )
    return message.SerializeToString()


def request_body(
    body: bytes, end_of_stream: bool = False, context: Mapping[str, Mapping[str, Any]] | None = None
) -> bytes:
    return pb.ProcessingRequest(
        request_body=pb.HttpBody(body=body, end_of_stream=end_of_stream), metadata_context=metadata(context)
    ).SerializeToString()


def request_trailers() -> bytes:
    return pb.ProcessingRequest(request_trailers=pb.HttpTrailers()).SerializeToString()


def response_headers(
    headers: Mapping[str, str] | None = None,
    end_of_stream: bool = False,
    context: Mapping[str, Mapping[str, Any]] | None = None,
) -> bytes:
    if headers is None:
        headers = {":status": "200", "content-type": "text/event-stream"}
    return pb.ProcessingRequest(
        response_headers=pb.HttpHeaders(headers=header_map(headers), end_of_stream=end_of_stream),
        metadata_context=metadata(context),
    ).SerializeToString()


def response_body(
    body: bytes, end_of_stream: bool = False, context: Mapping[str, Mapping[str, Any]] | None = None
) -> bytes:
    return pb.ProcessingRequest(
        response_body=pb.HttpBody(body=body, end_of_stream=end_of_stream), metadata_context=metadata(context)
    ).SerializeToString()


def response_trailers() -> bytes:
    return pb.ProcessingRequest(response_trailers=pb.HttpTrailers()).SerializeToString()


class RecordingFlight:
    """A flight that writes down what it hears. `fail_on` names the method that raises."""

    def __init__(self, decision: Decision, fail_on: str = "") -> None:
        self.request = InferenceRequest(id="r1", headers={}, path="", body=b"", payload=Payload(), received_at=0.0)
        self.response = InferenceResponse(served="10.0.0.1:8000")
        self.decision = decision
        self.fail_on = fail_on
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.sizes: list[int] = []
        self.events: list[bytes] = []
        self.answers: list[bytes] = []
        self.ends: list[TerminationCause] = []
        self.at_end: dict[str, dict[str, Any]] = {}

    def _may_fail(self, method: str) -> None:
        if self.fail_on == method:
            raise RuntimeError(f"{method} is broken")

    def response_headers(self, status: int, headers: Mapping[str, str], served: str) -> None:
        self.status = status
        self.headers = headers
        if served:
            self.response.served = served
        self._may_fail("response_headers")

    def chunk(self, now: float, size: int) -> None:
        self._may_fail("chunk")
        self.sizes.append(size)

    def stream_usage(self, event: bytes) -> None:
        self.events.append(event)
        self._may_fail("stream_usage")

    def body_usage(self, body: bytes) -> None:
        self.answers.append(body)
        self._may_fail("body_usage")

    def end(self, cause: TerminationCause) -> None:
        self.ends.append(cause)
        self.response.metadata.update(self.at_end)
        self._may_fail("end")


Answer = Callable[[RequestHead, bytes | None], Flight | Awaitable[Flight]]


class ObedientDirector:
    """Answers every request with a flight of its decision, or with what `answer` says. Keeps what it was asked."""

    def __init__(self, decision: Decision | None = None, answer: Answer | None = None, fail_on: str = "") -> None:
        self.decision = decision or Decision(destination=ENDPOINT.host_port)
        self.answer = answer
        self.fail_on = fail_on
        self.asked: list[tuple[RequestHead, bytes | None]] = []
        self.flights: list[RecordingFlight] = []
        self.refusals: list[tuple[RequestHead | None, RequestError]] = []

    def decide(self, head: RequestHead, body: bytes) -> Flight | Awaitable[Flight]:
        return self._answered(head, body)

    def decide_without_body(self, head: RequestHead) -> Flight | Awaitable[Flight]:
        return self._answered(head, None)

    def refused(self, head: RequestHead | None, error: RequestError) -> None:
        self.refusals.append((head, error))

    def _answered(self, head: RequestHead, body: bytes | None) -> Flight | Awaitable[Flight]:
        self.asked.append((head, body))
        return self.take_off() if self.answer is None else self.answer(head, body)

    def take_off(self) -> RecordingFlight:
        """One more flight."""
        flight = RecordingFlight(self.decision, self.fail_on)
        self.flights.append(flight)
        return flight

    @property
    def flight(self) -> RecordingFlight:
        """The only flight."""
        (flight,) = self.flights
        return flight


class Counts:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.violations: list[str] = []

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)

    def violated(self, problem: str) -> None:
        self.violations.append(problem)


class Conversation:
    """One exchange, and all it said, as the gateway reads it."""

    def __init__(
        self,
        director: ObedientDirector | None = None,
        settings: ExchangeSettings | None = None,
        observer: Counts | None = None,
    ) -> None:
        self.director = director or ObedientDirector()
        self.observer = observer or Counts()
        self.now = 0.0
        self.exchange = Exchange(
            ExchangeContext(
                director=self.director,
                clock=lambda: self.now,
                make_id=lambda: "made-id",
                settings=settings or ExchangeSettings(),
                observer=self.observer,
            )
        )
        self.replies: list[pb.ProcessingResponse] = []

    def say(self, *messages: bytes) -> list[pb.ProcessingResponse]:
        """Send messages; what was replied to them."""
        return self._note([reply for message in messages for reply in self.exchange.feed(message)])

    def half_close(self) -> list[pb.ProcessingResponse]:
        return self._note(self.exchange.half_close())

    def resolve(self, flight: Flight | None, error: BaseException | None = None) -> list[pb.ProcessingResponse]:
        return self._note(self.exchange.resolve(flight, error))

    def _note(self, replies: list[bytes]) -> list[pb.ProcessingResponse]:
        decoded = [pb.ProcessingResponse.FromString(reply) for reply in replies]
        self.replies += decoded
        return decoded

    @property
    def flight(self) -> RecordingFlight:
        return self.director.flight

    @property
    def finished(self) -> tuple[int, str] | None:
        return self.exchange.finished

    def picked(self, body: bytes = b"{}") -> Conversation:
        """Through the request phase in full duplex."""
        self.say(request_headers(), request_body(body, True))
        return self


def kinds(replies: list[pb.ProcessingResponse]) -> list[str]:
    """What each reply answers."""
    return [reply.WhichOneof("response") or "" for reply in replies]


def mutation(reply: pb.ProcessingResponse) -> pb.HeaderMutation:
    """The header mutation of any reply."""
    kind = reply.WhichOneof("response")
    part = getattr(reply, kind or "")
    if kind == "immediate_response":
        result: pb.HeaderMutation = part.headers
    elif kind in ("request_trailers", "response_trailers"):
        result = part.header_mutation
    else:
        result = part.response.header_mutation
    return result


def set_headers(reply: pb.ProcessingResponse) -> dict[str, str]:
    """Headers that the reply sets; all values have to be in raw_value."""
    options = mutation(reply).set_headers
    assert all(not option.header.value for option in options)
    return {option.header.key: option.header.raw_value.decode() for option in options}


def streamed(replies: list[pb.ProcessingResponse], phase: str) -> tuple[bytes, bool]:
    """The body that the replies of a phase hand on, and whether it ended. Asserts the rules of full duplex."""
    body = b""
    ended = False
    for reply in replies:
        if reply.WhichOneof("response") != phase:
            continue
        common = getattr(reply, phase).response
        assert common.body_mutation.WhichOneof("mutation") == "streamed_response", "spurious in full duplex"
        piece = common.body_mutation.streamed_response
        assert not ended, "bytes behind the end"
        assert len(piece.body) <= 62_000
        assert piece.body or piece.end_of_stream, "an empty piece that ends nothing"
        body += piece.body
        ended = piece.end_of_stream
    return body, ended


def destination(reply: pb.ProcessingResponse) -> str:
    """Where the decision sends the request: the header, which must agree with the metadata."""
    told = reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]
    assert set_headers(reply)["x-gateway-destination-endpoint"] == told
    return str(told)
