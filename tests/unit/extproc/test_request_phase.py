"""From the first message to the decision, in every body mode and request shape."""

from __future__ import annotations

from typing import Any

import pytest

from epp.api import ResourceExhausted, TerminationCause
from epp.director.flight import Decision
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.settings import ExchangeSettings
from tests.extproc_gateway import (
    Conversation,
    ObedientDirector,
    destination,
    kinds,
    mutation,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    set_headers,
    streamed,
)

HERE = "10.0.0.1:8000"
BODY = b'{"model":"m","prompt":"hi"}'
HEADERS = {":method": "POST", ":path": "/v1/completions", "x-request-id": "r1"}
BUFFERED = (pb.BUFFERED, pb.NONE)
PARTIAL = (pb.BUFFERED_PARTIAL, pb.NONE)
STREAMED = (pb.STREAMED, pb.STREAMED)


def with_decision(**fields: Any) -> Conversation:
    return Conversation(ObedientDirector(Decision(destination=HERE, **fields)))


# Full duplex


def test_headers_wait_for_the_body_and_come_first() -> None:
    talk = Conversation()
    assert talk.say(request_headers(), request_body(BODY[:5])) == []
    assert talk.say(request_body(BODY[5:])) == []
    replies = talk.say(request_body(b"", True))
    assert kinds(replies) == ["request_headers", "request_body"]
    assert destination(replies[0]) == HERE
    assert replies[0].request_headers.response.clear_route_cache
    assert streamed(replies, "request_body") == (BODY, True)
    head, body = talk.director.asked[0]
    assert (head.path, head.method, head.request_id, body) == ("/v1/completions", "POST", "r1", BODY)
    assert talk.flight.ends == []
    assert talk.finished is None


def test_an_unchanged_body_needs_no_content_length_and_nothing_is_echoed_in_headers() -> None:
    talk = Conversation()
    talk.say(request_headers({**HEADERS, "content-length": "27", "authorization": "Bearer x"}))
    reply = talk.say(request_body(BODY, True))[0]
    assert set_headers(reply) == {"x-gateway-destination-endpoint": HERE}
    assert not mutation(reply).remove_headers


def test_a_changed_body_replaces_the_original_and_its_length() -> None:
    talk = with_decision(body=b'{"model":"other"}')
    talk.say(request_headers())
    replies = talk.say(request_body(BODY, True))
    assert set_headers(replies[0])["content-length"] == "17"
    assert streamed(replies, "request_body") == (b'{"model":"other"}', True)


def test_a_long_body_is_sent_back_in_pieces() -> None:
    body = bytes(range(256)) * 2000
    talk = Conversation()
    talk.say(request_headers(), *[request_body(body[at : at + 32768]) for at in range(0, len(body), 32768)])
    replies = talk.say(request_body(b"", True))
    assert streamed(replies, "request_body") == (body, True)
    assert len(replies) == 1 + 9


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_headers_that_end_the_request_are_decided_without_a_body(method: str) -> None:
    talk = Conversation()
    replies = talk.say(request_headers({**HEADERS, ":method": method}, end_of_stream=True))
    assert kinds(replies) == ["request_headers"]
    assert destination(replies[0]) == HERE
    assert talk.director.asked[0][1] is None
    assert talk.director.asked[0][0].method == method


def test_an_empty_body_is_decided_without_one_and_its_end_is_sent_back() -> None:
    talk = Conversation()
    replies = talk.say(request_headers(), request_body(b"", True))
    assert kinds(replies) == ["request_headers", "request_body"]
    assert streamed(replies, "request_body") == (b"", True)
    assert talk.director.asked[0][1] is None


def test_a_request_may_end_with_trailers() -> None:
    talk = Conversation()
    assert talk.say(request_headers(), request_body(BODY)) == []
    replies = talk.say(request_trailers())
    assert kinds(replies) == ["request_headers", "request_body", "request_trailers"]
    assert streamed(replies, "request_body") == (BODY, False)


def test_trailers_without_a_body() -> None:
    talk = Conversation()
    assert kinds(talk.say(request_headers(), request_trailers())) == ["request_headers", "request_trailers"]


def test_a_second_end_is_no_harm_but_bytes_behind_the_end_are() -> None:
    talk = Conversation().picked()
    assert talk.say(request_body(b"", True), request_trailers()) == []
    assert talk.finished is None
    talk.say(request_body(b"more", True))
    assert talk.finished == (3, "ext_proc: request_body behind the end of the request")
    assert talk.flight.ends == [TerminationCause.ERROR]


# Gateways that do not tell their modes


def test_a_gateway_that_half_closes_right_after_the_body_gets_its_reply_and_the_end() -> None:
    talk = Conversation()
    headers = {"Content-Type": "application/json", "X-Request-Id": "r9"}
    replies = talk.say(request_headers(headers, modes=None, in_value=True), request_body(BODY, True))
    options = mutation(replies[0]).set_headers
    assert [(o.header.key, o.header.raw_value) for o in options] == [("x-gateway-destination-endpoint", HERE.encode())]
    assert talk.half_close() == []
    assert talk.finished == (0, "")
    assert talk.flight.ends == [TerminationCause.NATURAL]
    head = talk.director.asked[0][0]
    assert (head.path, head.method, head.request_id) == ("", "POST", "r9")


@pytest.mark.parametrize("messages", [[], [request_body(BODY)]])
def test_its_half_close_may_be_the_end_of_the_request(messages: list[bytes]) -> None:
    talk = Conversation()
    assert talk.say(request_headers(modes=None), *messages) == []
    replies = talk.half_close()
    assert kinds(replies) == ["request_headers", "request_body"]
    assert talk.finished == (0, "")
    assert talk.flight.ends == [TerminationCause.NATURAL]


def test_its_half_close_may_be_refused() -> None:
    def refuse(*_: object) -> Any:
        raise ResourceExhausted("full")

    talk = Conversation(ObedientDirector(answer=refuse))
    talk.say(request_headers(modes=None), request_body(BODY))
    assert kinds(talk.half_close()) == ["immediate_response"]
    assert talk.finished == (0, "")


def test_its_answer_may_pass_all_the_same() -> None:
    talk = Conversation()
    talk.say(request_headers(modes=None), request_body(BODY, True), response_headers())
    assert streamed(talk.say(response_body(b"x")), "response_body") == (b"x", False)
    talk.half_close()
    assert talk.flight.ends == [TerminationCause.CLIENT_DISCONNECT]


# Buffered


def test_buffered_headers_are_answered_at_once_and_the_body_carries_the_decision() -> None:
    talk = with_decision(body=b"changed", set_headers={"X-Extra": "1"})
    headers, *rest = talk.say(request_headers({**HEADERS, "x-prefiller-host-port": "evil:1"}, modes=BUFFERED))
    assert rest == []
    assert not headers.request_headers.response.HasField("header_mutation")
    assert "envoy.lb" not in headers.dynamic_metadata
    (reply,) = talk.say(request_body(BODY, True))
    assert reply.WhichOneof("response") == "request_body"
    assert destination(reply) == HERE
    common = reply.request_body.response
    assert common.clear_route_cache
    assert common.body_mutation.body == b"changed"
    assert set_headers(reply)["content-length"] == "7"
    assert set_headers(reply)["x-extra"] == "1"
    assert list(mutation(reply).remove_headers) == ["x-prefiller-host-port"]


def test_a_buffered_body_that_stays_is_not_sent_back() -> None:
    talk = Conversation()
    talk.say(request_headers(modes=BUFFERED))
    (reply,) = talk.say(request_body(BODY, True))
    assert not reply.request_body.response.HasField("body_mutation")
    assert set(set_headers(reply)) == {"x-gateway-destination-endpoint"}


def test_a_changed_body_may_be_empty() -> None:
    talk = with_decision(body=b"")
    talk.say(request_headers(modes=BUFFERED))
    (reply,) = talk.say(request_body(BODY, True))
    assert reply.request_body.response.body_mutation.clear_body
    assert set_headers(reply)["content-length"] == "0"


def test_a_buffered_body_with_trailers_is_whole() -> None:
    talk = Conversation()
    talk.say(request_headers(modes=BUFFERED))
    assert kinds(talk.say(request_body(BODY))) == ["request_body"]
    assert talk.director.asked[0][1] == BODY
    assert kinds(talk.say(request_trailers())) == ["request_trailers"]


def test_buffered_headers_that_end_the_request_carry_the_decision() -> None:
    assert destination(Conversation().say(request_headers(modes=BUFFERED, end_of_stream=True))[0]) == HERE


def test_buffered_trailers_without_a_body_carry_what_they_can() -> None:
    talk = Conversation()
    talk.say(request_headers(modes=BUFFERED))
    (reply,) = talk.say(request_trailers())
    assert reply.WhichOneof("response") == "request_trailers"
    assert reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == HERE
    assert not reply.request_trailers.HasField("header_mutation")


def test_a_partly_buffered_body_is_read_only_when_it_is_all_there() -> None:
    def asked(length: str | None, body: bytes, end: bool) -> bytes | None:
        talk = Conversation()
        headers = HEADERS if length is None else {**HEADERS, "content-length": length}
        talk.say(request_headers(headers, modes=PARTIAL))
        assert destination(talk.say(request_body(body, end))[0]) == HERE
        assert kinds(talk.say(request_body(b"rest", True))) == ["request_body"]
        return talk.director.asked[0][1]

    assert asked(None, BODY, True) == BODY
    assert asked(str(len(BODY)), BODY, False) == BODY
    assert asked(None, BODY, False) is None
    assert asked("99999", BODY, False) is None


# Streamed, and no body at all


def test_streamed_headers_are_decided_at_once_and_the_body_passes_with_plain_replies() -> None:
    talk = Conversation()
    (reply,) = talk.say(request_headers(modes=STREAMED))
    assert destination(reply) == HERE
    assert talk.director.asked[0][1] is None
    replies = talk.say(request_body(b"a"), request_body(b"b", True), request_trailers())
    assert kinds(replies) == ["request_body", "request_body", "request_trailers"]
    assert all(not r.request_body.response.HasField("body_mutation") for r in replies[:2])


def test_a_gateway_that_sends_no_body_is_answered_at_the_headers() -> None:
    assert destination(Conversation().say(request_headers(modes=(pb.NONE, pb.NONE)))[0]) == HERE


# What the decision carries


def test_control_headers_of_a_client_are_removed_unless_we_set_them() -> None:
    spoofed = {
        "X-Prefiller-Host-Port": "evil:1",
        "x-encoder-hosts-ports": "evil:1",
        "x-kv-cache-source-host-port": "evil:1",
        "x-data-parallel-host-port": "evil:1",
        "x-gateway-destination-endpoint": "evil:1",
        "x-llm-d-inference-objective": "mine",
    }
    talk = with_decision(set_headers={"x-prefiller-host-port": "10.0.0.9:8000"}, remove_headers=("X-Own", "x-own"))
    talk.say(request_headers({**HEADERS, **spoofed}))
    reply = talk.say(request_body(BODY, True))[0]
    assert set_headers(reply) == {
        "x-gateway-destination-endpoint": HERE,
        "x-prefiller-host-port": "10.0.0.9:8000",
    }
    assert sorted(mutation(reply).remove_headers) == [
        "x-data-parallel-host-port",
        "x-encoder-hosts-ports",
        "x-kv-cache-source-host-port",
        "x-own",
    ]


def test_a_plugin_cannot_touch_what_belongs_to_the_exchange() -> None:
    talk = with_decision(
        set_headers={
            "X-Gateway-Destination-Endpoint": "elsewhere",
            "transfer-encoding": "chunked",
            "Content-Length": "1",
            "x-empty": "",
        }
    )
    talk.say(request_headers())
    assert set_headers(talk.say(request_body(BODY, True))[0]) == {"x-gateway-destination-endpoint": HERE}


def test_what_a_plugin_sets_and_is_no_header_is_left_out_and_counted() -> None:
    broken: dict[Any, Any] = {7: "x", "x-none": None, "a b": "c", "x-two": "a\r\nx-prefiller-host-port: evil", "": "x"}
    talk = with_decision(set_headers={**broken, "X-Good": "1", ":path": "/x"})
    talk.say(request_headers())
    reply = talk.say(request_body(BODY, True))[0]
    assert set_headers(reply) == {"x-gateway-destination-endpoint": HERE, "x-good": "1", ":path": "/x"}
    assert len(talk.observer.failures) == len(broken)


def test_a_missing_request_id_is_made_and_sent_on() -> None:
    talk = Conversation()
    talk.say(request_headers({":path": "/v1/completions"}))
    reply = talk.say(request_body(BODY, True))[0]
    assert set_headers(reply)["x-request-id"] == "made-id"
    head = talk.director.asked[0][0]
    assert head.request_id == head.headers["x-request-id"] == "made-id"


def test_scores_are_emitted_when_the_decision_has_them() -> None:
    talk = with_decision(scores={HERE: 0.75, "[::1]:8000": 0.5})
    talk.say(request_headers())
    reply = talk.say(request_body(BODY, True))[0]
    assert destination(reply) == HERE
    scores = reply.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint-scores"]
    assert dict(scores) == {HERE: 0.75, "[::1]:8000": 0.5}


def test_equal_decisions_share_their_bytes_up_to_a_bound() -> None:
    first, second, third = Conversation(), Conversation(), Conversation()
    context = second.exchange._context = third.exchange._context = first.exchange._context
    told = first.picked().replies[0]
    assert list(context.plain_decisions) == [HERE]
    assert second.picked().replies[0] == told
    context.plain_decisions.clear()
    context.plain_decisions.update({f"10.1.{n >> 8}.{n & 255}:1": b"" for n in range(4096)})
    assert third.picked().replies[0] == told
    assert list(context.plain_decisions) == [HERE]


def test_the_subset_hint_reaches_the_director_from_any_message() -> None:
    hint = {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": ["10.0.0.2:80"]}}
    talk = Conversation()
    talk.say(request_headers(context=hint), request_body(BODY, True))
    assert talk.director.asked[0][0].subset == ("10.0.0.2:80",)
    talk = Conversation()
    talk.say(request_headers(), request_body(BODY), request_body(b"", True, context=hint))
    assert talk.director.asked[0][0].subset == ("10.0.0.2:80",)
    talk = Conversation()
    talk.say(request_headers(), request_body(BODY, True))
    assert talk.director.asked[0][0].subset is None


def test_a_hint_between_the_pieces_of_a_body_counts_too() -> None:
    hint = {"envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": ["10.0.0.2:80"]}}
    talk = Conversation()
    talk.say(request_headers(), request_body(BODY[:5]), request_body(BODY[5:9], context=hint), request_body(BODY[9:]))
    talk.say(request_body(b"", True))
    assert talk.director.asked[0][0].subset == ("10.0.0.2:80",)
    assert talk.director.asked[0][1] == BODY


@pytest.mark.parametrize("behind", [b"", b"\x42\x00"])
def test_pieces_are_refused_when_they_are_too_many(behind: bytes) -> None:
    talk = Conversation(settings=ExchangeSettings(max_body_bytes=10))
    assert talk.say(request_headers(), request_body(b"12345") + behind, request_body(b"67890") + behind) == []
    (reply,) = talk.say(request_body(b"1") + behind)
    assert reply.immediate_response.status.code == 413
    assert talk.say(request_body(b"2") + behind) == []


def test_a_piece_behind_an_answer_of_the_gateway_itself_is_out_of_order() -> None:
    talk = Conversation()
    talk.say(request_headers(), request_body(b"12345"), response_headers({":status": "503"}, end_of_stream=True))
    assert talk.say(request_body(b"6")) == []
    assert talk.finished is not None
    assert talk.finished[0] == 3


# The bypass


@pytest.mark.parametrize("by_decision", [True, False])
def test_the_bypass_ends_the_stream_with_the_last_reply(by_decision: bool) -> None:
    talk = Conversation(
        ObedientDirector(Decision(destination=HERE, skip_response=by_decision)),
        ExchangeSettings(bypass_response=not by_decision),
    )
    assert talk.say(request_headers(), request_body(BODY)) == []
    assert talk.finished is None
    replies = talk.say(request_body(b"", True))
    assert kinds(replies) == ["request_headers", "request_body"]
    assert talk.finished == (0, "")
    assert talk.flight.ends == [TerminationCause.NATURAL]
    assert talk.say(response_headers(), request_trailers()) == []
    assert talk.half_close() == []
    talk.exchange.close()
    assert talk.flight.ends == [TerminationCause.NATURAL]
