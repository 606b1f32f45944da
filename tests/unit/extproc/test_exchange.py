"""Refusals, waiting decisions, broken protocol, and failures of our own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from epp.api import (
    BadRequest,
    Internal,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    RequestError,
    ResourceExhausted,
    ServiceUnavailable,
    TerminationCause,
)
from epp.director.flight import Decision
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc import replies as replies_module
from epp.extproc import response_phase
from epp.extproc.settings import ExchangeSettings, NoObserver
from tests.extproc_gateway import (
    FDS,
    Conversation,
    ObedientDirector,
    kinds,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
    streamed,
)

HEADERS = {":method": "POST", ":path": "/v1/completions", "x-request-id": "r1"}
BODY = b'{"model":"m"}'
BUFFERED = (pb.BUFFERED, pb.NONE)
STREAMED = (pb.STREAMED, FDS)


def refusing(error: BaseException) -> Conversation:
    def refuse(*_: object) -> Any:
        raise error

    return Conversation(ObedientDirector(answer=refuse))


def waiting(settings: ExchangeSettings | None = None) -> tuple[Conversation, Any]:
    """A conversation whose decision has to wait; the second is what it waits for."""
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    return Conversation(ObedientDirector(answer=lambda *_: future), settings), future


# Refusals


@pytest.mark.parametrize(
    ("error", "status", "grpc_status", "details"),
    [
        (BadRequest("no"), 400, 3, "epp_bad_request"),
        (NotFound("no"), 404, 5, "epp_not_found"),
        (PreconditionFailed("no"), 412, 9, "epp_precondition_failed"),
        (PayloadTooLarge("no"), 413, 8, "epp_payload_too_large"),
        (ResourceExhausted("no", reason="rejected-saturated"), 429, 8, "epp_resource_exhausted"),
        (Internal("no"), 500, 13, "epp_internal"),
        (ServiceUnavailable("no", reason="rejected-no-endpoints"), 503, 14, "epp_service_unavailable"),
    ],
)
@pytest.mark.parametrize("modes", [(FDS, FDS), BUFFERED])
def test_a_refusal_is_an_immediate_response_and_the_end(
    error: RequestError, status: int, grpc_status: int, details: str, modes: tuple[int, int]
) -> None:
    talk = refusing(error)
    talk.say(request_headers(modes=modes))
    (reply,) = talk.say(request_body(BODY, True))
    answer = reply.immediate_response
    assert answer.status.code == status
    assert answer.grpc_status.status == grpc_status
    assert answer.details == details
    assert answer.body.decode() == f"inference error: {error.code} - no"
    expected = {"content-type": "text/plain"}
    if error.reason:
        expected["x-llm-d-request-dropped-reason"] = error.reason
    assert set_headers(reply) == expected
    assert talk.finished == (0, "")
    assert talk.director.refusals == []  # the director counted it itself
    assert talk.say(request_body(b"late", True), response_headers()) == []
    assert talk.half_close() == []


def test_headers_alone_may_be_refused() -> None:
    assert kinds(refusing(BadRequest("no")).say(request_headers(end_of_stream=True))) == ["immediate_response"]


def test_an_announced_length_beyond_the_limit_is_refused_at_the_headers() -> None:
    for modes in ((FDS, FDS), BUFFERED, STREAMED):
        talk = Conversation(settings=ExchangeSettings(max_body_bytes=10))
        (reply,) = talk.say(request_headers({**HEADERS, "content-length": "11"}, modes=modes))
        assert reply.immediate_response.status.code == 413
        assert b"11 bytes exceeds the limit of 10" in reply.immediate_response.body
        ((head, error),) = talk.director.refusals
        assert head is not None
        assert head.request_id == "r1"
        assert isinstance(error, PayloadTooLarge)
        assert talk.director.asked == []


@pytest.mark.parametrize("length", ["10", "", "-1", "abc", "9" * 30])
def test_other_lengths_are_left_to_the_gateway(length: str) -> None:
    talk = Conversation(settings=ExchangeSettings(max_body_bytes=10))
    assert talk.say(request_headers({**HEADERS, "content-length": length}), request_body(b"x" * 10)) == []
    assert len(talk.say(request_body(b"", True))) == 2


@pytest.mark.parametrize("modes", [(FDS, FDS), BUFFERED, None])
def test_a_body_beyond_the_limit_is_refused_as_soon_as_it_is_known(modes: tuple[int, int] | None) -> None:
    talk = Conversation(settings=ExchangeSettings(max_body_bytes=10))
    talk.say(request_headers(modes=modes))
    (reply,) = talk.say(request_body(b"x" * 11), request_body(b"x" * 11, True))
    assert reply.immediate_response.status.code == 413
    assert talk.finished == (0, "")


def test_a_streamed_body_beyond_the_limit_ends_its_flight() -> None:
    talk = Conversation(settings=ExchangeSettings(max_body_bytes=10))
    talk.say(request_headers(modes=STREAMED), request_body(b"x" * 6))
    (reply,) = talk.say(request_body(b"x" * 6))
    assert reply.immediate_response.status.code == 413
    assert talk.flight.ends == [TerminationCause.ERROR]


# Decisions that wait


@pytest.mark.parametrize("ending", [request_body(b"", True), request_trailers()])
def test_a_waiting_decision_is_told_when_it_is_there(ending: bytes) -> None:
    talk, future = waiting()
    assert talk.say(request_headers(), request_body(BODY), ending) == []
    assert talk.exchange.pending is future
    replies = talk.resolve(talk.director.take_off())
    assert kinds(replies)[:2] == ["request_headers", "request_body"]
    assert talk.exchange.pending is None
    assert talk.finished is None


def test_messages_that_arrive_meanwhile_are_handled_in_order() -> None:
    talk, _ = waiting()
    assert talk.say(request_headers(modes=STREAMED)) == []
    assert talk.say(request_body(b"a"), request_body(b"b", True), request_trailers(), b"") == []
    replies = talk.resolve(talk.director.take_off())
    assert kinds(replies) == ["request_headers", "request_body", "request_body", "request_trailers"]


def test_a_violation_among_them_ends_it() -> None:
    talk, _ = waiting()
    talk.say(request_headers(modes=STREAMED), request_headers(), request_body(b"a"))
    flight = talk.director.take_off()
    assert kinds(talk.resolve(flight)) == ["request_headers"]
    assert talk.finished == (3, "ext_proc: a second request_headers")
    assert flight.ends == [TerminationCause.ERROR]


def test_what_follows_a_refusal_is_ignored() -> None:
    talk, _ = waiting()
    talk.say(request_headers(modes=STREAMED), request_body(b"a"))
    assert kinds(talk.resolve(None, ResourceExhausted("full"))) == ["immediate_response"]
    assert talk.finished == (0, "")


@pytest.mark.parametrize("error", [RuntimeError("boom"), None])
def test_a_decision_that_fails_is_a_500(error: BaseException | None) -> None:
    talk, _ = waiting()
    talk.say(request_headers(), request_body(BODY, True))
    (reply,) = talk.resolve(None, error)
    assert reply.immediate_response.status.code == 500
    assert len(talk.observer.failures) == 1
    assert len(talk.director.refusals) == 1


def test_too_many_bytes_meanwhile() -> None:
    talk, _ = waiting(ExchangeSettings(max_body_bytes=10))
    talk.say(request_headers(modes=STREAMED), request_body(b"x" * 6))
    (reply,) = talk.say(request_body(b"x" * 6))
    assert reply.immediate_response.status.code == 413
    assert talk.exchange.pending is None


def test_too_many_messages_meanwhile() -> None:
    talk, _ = waiting(ExchangeSettings(queued_messages=2))
    talk.say(request_headers(modes=STREAMED), *[request_body(b"")] * 3)
    assert talk.finished == (3, "ext_proc: too many messages while the decision is pending")
    assert talk.exchange.pending is None


def test_a_client_that_goes_away_while_the_decision_waits() -> None:
    talk, _ = waiting()
    talk.say(request_headers(), request_body(BODY, True))
    assert talk.half_close() == []
    assert talk.exchange.pending is None
    assert talk.finished == (14, "the client went away before its request was answered")
    late = talk.director.take_off()
    assert talk.resolve(late) == []
    assert late.ends == [TerminationCause.CLIENT_DISCONNECT]
    assert talk.resolve(None, RuntimeError()) == []


def test_a_client_that_goes_away_in_the_middle_of_its_body() -> None:
    talk = Conversation()
    talk.say(request_headers(), request_body(BODY))
    assert talk.half_close() == []
    assert talk.finished is not None
    assert talk.finished[0] == 14
    assert talk.director.asked == []


def test_a_gateway_without_modes_waits_for_the_reply_behind_its_half_close() -> None:
    talk, _ = waiting()
    talk.say(request_headers(modes=None), request_body(BODY, True))
    assert talk.half_close() == []
    assert talk.finished is None
    flight = talk.director.take_off()
    assert kinds(talk.resolve(flight)) == ["request_headers", "request_body"]
    assert talk.finished == (0, "")
    assert flight.ends == [TerminationCause.NATURAL]


def test_a_reset_while_the_decision_waits() -> None:
    talk, _ = waiting()
    talk.say(request_headers(), request_body(BODY, True))
    talk.exchange.close()
    assert talk.exchange.pending is None
    late = talk.director.take_off()
    assert talk.resolve(late) == []
    assert late.ends == [TerminationCause.CLIENT_DISCONNECT]


# The gateway answers by itself


@pytest.mark.parametrize("pending", [True, False])
def test_an_answer_before_the_decision_only_passes(pending: bool) -> None:
    talk, _ = waiting()
    talk.say(request_headers(), request_body(BODY, pending))
    replies = talk.say(response_headers({":status": "413"}), response_body(b"too"), response_body(b" big", True))
    assert kinds(replies) == ["response_headers", "response_body", "response_body"]
    assert streamed(replies, "response_body") == (b"too big", True)
    assert talk.exchange.pending is None
    assert talk.say(request_body(b"", True)) == []
    late = talk.director.take_off()
    assert talk.resolve(late) == []
    assert late.ends == [TerminationCause.CLIENT_DISCONNECT]
    talk.half_close()
    assert talk.finished == (0, "")


def test_such_an_answer_may_end_with_headers_or_trailers() -> None:
    talk = Conversation()
    talk.say(request_headers())
    assert kinds(talk.say(response_headers({":status": "403"}, end_of_stream=True))) == ["response_headers"]
    assert kinds(talk.say(response_trailers())) == ["response_trailers"]
    assert talk.finished is None


# Broken protocol


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([b"\xff\xff"], "not a ProcessingRequest"),
        ([request_body(b"x")], "request_body before request_headers"),
        ([request_trailers()], "request_trailers before request_headers"),
        ([response_headers()], "response_headers before request_headers"),
        ([response_body(b"x")], "response_body before request_headers"),
        ([response_trailers()], "response_trailers before request_headers"),
        ([request_headers(), request_headers()], "a second request_headers"),
        (
            [request_headers(end_of_stream=True), response_headers(), response_headers()],
            "response_headers out of order",
        ),
        (
            [request_headers(end_of_stream=True), response_body(b"x"), response_headers()],
            "response_headers out of order",
        ),
        ([request_headers(end_of_stream=True), b"\x12\x01"], "not a ProcessingRequest"),
    ],
)
def test_a_broken_protocol_is_a_clear_grpc_error(messages: list[bytes], problem: str) -> None:
    talk = Conversation()
    talk.say(*messages)
    assert talk.finished is not None
    code, text = talk.finished
    assert code == 3
    assert problem in text
    assert problem in talk.observer.violations[0]
    assert all(flight.ends == [TerminationCause.ERROR] for flight in talk.director.flights)
    assert talk.say(request_headers(), response_body(b"x")) == []


def test_messages_of_later_versions_are_ignored() -> None:
    talk = Conversation()
    assert talk.say(b"", b"\x62\x00", request_headers(), b"\x6a\x00") == []
    assert len(talk.say(request_body(BODY, True), b"\x6a\x00")) == 2
    assert talk.finished is None


def test_a_stream_without_a_request() -> None:
    talk = Conversation()
    assert talk.half_close() == []
    assert talk.finished == (0, "")
    talk = Conversation()
    talk.exchange.close()
    assert talk.finished == (14, "the stream was closed")


# Failures of our own


def test_a_director_that_breaks_is_a_500() -> None:
    talk = refusing(RuntimeError("boom"))
    (reply,) = talk.say(request_headers(), request_body(BODY, True))
    assert reply.immediate_response.status.code == 500
    assert reply.immediate_response.body == b"inference error: Internal - the picker failed: RuntimeError: boom"
    assert talk.finished == (0, "")
    assert [type(failure) for failure in talk.observer.failures] == [RuntimeError]
    ((head, error),) = talk.director.refusals
    assert head is not None
    assert isinstance(error, Internal)


def test_a_decision_that_cannot_be_told_ends_its_flight() -> None:
    talk = Conversation(ObedientDirector(Decision(destination="x", body="no bytes")))
    (reply,) = talk.say(request_headers(), request_body(BODY, True))
    assert reply.immediate_response.status.code == 500
    assert talk.flight.ends == [TerminationCause.ERROR]


def test_a_waiting_decision_that_cannot_be_told_ends_its_flight() -> None:
    talk, _ = waiting()
    talk.director.decision = Decision(destination="x", body="no bytes")
    talk.say(request_headers(), request_body(BODY, True))
    flight = talk.director.take_off()
    (reply,) = talk.resolve(flight)
    assert reply.immediate_response.status.code == 500
    assert flight.ends == [TerminationCause.ERROR]


def test_a_director_that_cannot_even_count() -> None:
    class Broken(ObedientDirector):
        def refused(self, head: Any, error: Any) -> None:
            raise RuntimeError("no")

    talk = Conversation(Broken(), ExchangeSettings(max_body_bytes=1))
    (reply,) = talk.say(request_headers(), request_body(BODY))
    assert reply.immediate_response.status.code == 413
    assert len(talk.observer.failures) == 1


@pytest.mark.parametrize("mode", [FDS, pb.STREAMED])
@pytest.mark.parametrize(
    ("method", "message", "kind"),
    [
        ("headers", response_headers(), "response_headers"),
        ("body", response_body(b"token"), "response_body"),
        ("trailers", response_trailers(), "response_trailers"),
    ],
)
def test_a_bug_in_the_response_phase_lets_the_answer_pass(
    monkeypatch: pytest.MonkeyPatch, mode: int, method: str, message: bytes, kind: str
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("a bug")

    talk = Conversation()
    talk.say(request_headers(modes=(FDS, mode), end_of_stream=True))
    with monkeypatch.context() as patch:
        patch.setattr(response_phase.ResponsePhase, method, broken)
        replies = talk.say(message)
    assert kinds(replies) == [kind]
    if method == "body" and mode == FDS:
        assert streamed(replies, "response_body") == (b"token", False)
    assert talk.flight.ends == [TerminationCause.ERROR]
    assert len(talk.observer.failures) == 1
    assert talk.finished is None


def test_a_bug_behind_the_decision_is_a_grpc_error(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation()
    talk.say(request_headers(modes=STREAMED))
    monkeypatch.delattr(replies_module, "PLAIN_REQUEST_BODY")
    assert talk.say(request_body(b"x")) == []
    assert talk.finished == (13, "the picker failed: AttributeError")
    assert talk.flight.ends == [TerminationCause.ERROR]


def test_headers_that_break_us_are_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation()
    context = talk.exchange._context

    def broken() -> str:
        raise OSError("no entropy")

    object.__setattr__(context, "make_id", broken)
    (reply,) = talk.say(request_headers({":path": "/"}))
    assert reply.immediate_response.status.code == 500
    assert talk.director.refusals[0][0] is None


def test_nobody_has_to_observe() -> None:
    observer = NoObserver()
    observer.failed(RuntimeError())
    observer.violated("x")
