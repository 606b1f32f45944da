"""The answer on its way past the picker, in every body mode."""

from __future__ import annotations

import json
from typing import Any

import pytest

from epp.api import TerminationCause
from epp.director.flight import Decision
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.settings import ExchangeSettings
from tests.extproc_gateway import (
    FDS,
    Conversation,
    ObedientDirector,
    kinds,
    mutation,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
    streamed,
)

JSON = {":status": "200", "content-type": "application/json", "content-length": "99"}
TOKEN = b'data: {"model":"m","choices":[{"text":"x"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"
SERVED = {"envoy.lb": {"x-gateway-destination-endpoint-served": "10.0.0.2:8000"}}
RENAMED = Decision(destination="10.0.0.1:8000", restore_model=("m", "asked"))


def in_flight(mode: int = FDS, decision: Decision | None = None, **options: Any) -> Conversation:
    """Picked, with the answer about to come."""
    talk = Conversation(ObedientDirector(decision, fail_on=options.pop("fail_on", "")), **options)
    talk.say(request_headers(modes=(pb.STREAMED, mode)), request_body(b"", True))
    talk.replies.clear()
    return talk


def test_a_stream_is_echoed_measured_and_read_for_usage() -> None:
    talk = in_flight()
    headers, *nothing = talk.say(response_headers())
    assert nothing == []
    assert set_headers(headers) == {"x-went-into-resp-headers": "true"}
    talk.say(*[response_body(event) for event in (TOKEN, TOKEN, USAGE, DONE)], response_body(b"", True))
    assert streamed(talk.replies, "response_body") == (2 * TOKEN + USAGE + DONE, True)
    assert len(talk.replies) == 6
    flight = talk.flight
    assert flight.status == 200
    assert flight.headers["content-type"] == "text/event-stream"
    assert flight.sizes == [len(TOKEN), len(TOKEN), len(USAGE), len(DONE)]
    assert flight.events == [USAGE[6:-2]]
    assert flight.answers == []
    assert flight.ends == [TerminationCause.NATURAL]
    assert flight.response.served == "10.0.0.1:8000"
    assert talk.finished is None
    assert talk.half_close() == []
    assert talk.finished == (0, "")


def test_usage_split_over_chunks_is_found() -> None:
    talk = in_flight()
    talk.say(response_headers(), response_body(TOKEN), response_body(USAGE[:20]), response_body(USAGE[20:] + DONE))
    talk.say(response_body(b"", True))
    assert talk.flight.events == [USAGE[6:-2]]


def test_a_long_chunk_is_split() -> None:
    talk = in_flight()
    body = b"x" * 150_000
    talk.say(response_headers(), response_body(TOKEN), response_body(body))
    assert streamed(talk.replies, "response_body") == (TOKEN + body, False)
    assert talk.flight.sizes == [len(TOKEN), 150_000]


def test_a_json_answer_is_echoed_as_it_comes_and_its_usage_read_at_the_end() -> None:
    talk = in_flight()
    body = json.dumps({"choices": [], "usage": {"total_tokens": 3}}).encode()
    talk.say(response_headers(JSON))
    assert streamed(talk.say(response_body(body[:10])), "response_body") == (body[:10], False)
    assert streamed(talk.say(response_body(body[10:])), "response_body") == (body[10:], False)
    assert talk.flight.answers == []
    talk.say(response_body(b"", True))
    assert talk.flight.answers == [body]


def test_of_a_long_answer_the_tail_is_read() -> None:
    talk = in_flight(settings=ExchangeSettings(answer_bytes=400))
    talk.say(response_headers(JSON), response_body(b"x" * 300), response_body(b"y" * 300, True))
    assert talk.flight.answers == [b"y" * 100]


@pytest.mark.parametrize(
    "headers",
    [
        {":status": "200", "content-type": "image/png"},
        {":status": "200", "content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_what_no_engine_writes_only_passes(headers: dict[str, str]) -> None:
    talk = in_flight(decision=RENAMED)
    body = b'"usage" {"model":"m"}'
    talk.say(response_headers(headers), response_body(body), response_body(body, True))
    assert streamed(talk.replies, "response_body") == (2 * body, True)
    assert talk.flight.answers == []
    assert talk.flight.sizes == [len(body)] * 2


def test_headers_may_end_the_answer() -> None:
    talk = in_flight()
    talk.say(response_headers({":status": "503"}, end_of_stream=True))
    assert talk.flight.status == 503
    assert talk.flight.ends == [TerminationCause.NATURAL]


@pytest.mark.parametrize("status", ["", "abc", "²"])
def test_a_status_that_is_no_number(status: str) -> None:
    talk = in_flight()
    talk.say(response_headers({":status": status}))
    assert talk.flight.status == 0


def test_the_served_endpoint_is_taken_from_whichever_message_tells_it() -> None:
    talk = in_flight()
    talk.say(response_headers(context=SERVED))
    assert talk.flight.response.served == "10.0.0.2:8000"
    talk = in_flight()
    talk.say(response_headers(), response_body(TOKEN, context=SERVED))
    assert talk.flight.response.served == "10.0.0.2:8000"


def test_plugins_set_response_headers_and_report_at_the_end() -> None:
    talk = in_flight()
    talk.flight.response.set_headers["x-session-token"] = "abc"
    talk.flight.at_end = {"my.ns": {"tokens": 3, "nested": {"a": [1, "x", None, True]}}}
    (headers,) = talk.say(response_headers())
    assert set_headers(headers) == {"x-went-into-resp-headers": "true", "x-session-token": "abc"}
    replies = talk.say(response_body(TOKEN), response_body(b"y" * 130_000, True))
    assert ["my.ns" in reply.dynamic_metadata for reply in replies] == [False, False, False, True]
    assert replies[-1].dynamic_metadata["my.ns"]["tokens"] == 3
    assert streamed(replies, "response_body")[1]


def test_a_report_may_travel_on_headers_or_trailers() -> None:
    for ending in (response_headers(end_of_stream=True), response_trailers()):
        talk = in_flight()
        talk.flight.at_end = {"my.ns": {"a": "b"}}
        assert talk.say(ending)[-1].dynamic_metadata["my.ns"]["a"] == "b"


def test_what_cannot_be_reported_is_left_out() -> None:
    talk = in_flight()
    talk.flight.at_end = {"my.ns": {"a": object()}}
    (reply,) = talk.say(response_headers(end_of_stream=True))
    assert not reply.HasField("dynamic_metadata")
    assert len(talk.observer.failures) == 1


def test_headers_that_are_none_are_left_out() -> None:
    talk = in_flight()
    talk.flight.response.set_headers.update({"x-bad": 7, "x-Good": "1"})
    (headers,) = talk.say(response_headers())
    assert set_headers(headers) == {"x-went-into-resp-headers": "true", "x-good": "1"}
    assert len(talk.observer.failures) == 1
    assert talk.flight.ends == []


def test_headers_in_a_shape_of_their_own_are_left_out() -> None:
    talk = in_flight()
    shapeless: Any = ["x-bad"]
    talk.flight.response.set_headers = shapeless
    (headers,) = talk.say(response_headers())
    assert set_headers(headers) == {"x-went-into-resp-headers": "true"}
    assert len(talk.observer.failures) == 1


def test_trailers_end_the_answer() -> None:
    talk = in_flight()
    talk.say(response_headers(), response_body(TOKEN))
    assert kinds(talk.say(response_trailers())) == ["response_trailers"]
    assert talk.flight.ends == [TerminationCause.NATURAL]
    assert streamed(talk.replies, "response_body") == (TOKEN, False)


def test_a_second_end_is_no_harm_but_bytes_behind_the_end_are() -> None:
    talk = in_flight()
    talk.say(response_headers(), response_body(TOKEN, True))
    assert talk.say(response_body(b"", True)) == []
    assert kinds(talk.say(response_trailers())) == ["response_trailers"]
    assert talk.finished is None
    assert talk.say(response_body(b"more")) == []
    assert talk.finished == (3, "ext_proc: response_body behind the end of the response")
    assert talk.flight.ends == [TerminationCause.NATURAL]


def test_without_response_headers_the_body_tells_what_it_is() -> None:
    talk = in_flight()
    talk.say(response_body(TOKEN, context=SERVED), response_body(USAGE), response_body(DONE, True))
    assert talk.flight.response.streaming
    assert talk.flight.response.served == "10.0.0.2:8000"
    assert talk.flight.events == [USAGE[6:-2]]
    talk = in_flight()
    talk.say(response_body(b'{"usage":{}}', True))
    assert not talk.flight.response.streaming
    assert talk.flight.answers == [b'{"usage":{}}']


# The model's name


def test_the_model_gets_its_name_back_wherever_the_chunks_are_cut() -> None:
    body = TOKEN + b'data: {"model": "m"}\n\n'
    for cut in range(1, len(body)):
        talk = in_flight(decision=RENAMED)
        talk.say(response_headers(), response_body(body[:cut]), response_body(body[cut:]), response_body(b"", True))
        told, ended = streamed(talk.replies, "response_body")
        assert told == body.replace(b'"m"', b'"asked"')
        assert ended


def test_a_chunk_that_is_held_back_whole_gets_no_reply_until_it_passes() -> None:
    talk = in_flight(decision=RENAMED)
    talk.say(response_headers(), response_body(TOKEN))
    assert talk.say(response_body(b'"mod')) == []
    assert streamed(talk.say(response_body(b"e")), "response_body") == (b"", False)
    assert streamed(talk.say(response_body(b"", True)), "response_body") == (b'"mode', True)


def test_trailers_flush_what_is_held_back() -> None:
    talk = in_flight(decision=RENAMED)
    talk.say(response_headers(), response_body(b'x"mod'))
    replies = talk.say(response_trailers())
    assert kinds(replies) == ["response_body", "response_trailers"]
    assert streamed(replies, "response_body") == (b'"mod', False)


def test_a_length_that_will_not_hold_is_taken_off() -> None:
    for mode in (FDS, pb.STREAMED):
        talk = in_flight(mode, RENAMED)
        assert list(mutation(talk.say(response_headers(JSON))[0]).remove_headers) == ["content-length"]
        talk = in_flight(mode)
        assert list(mutation(talk.say(response_headers(JSON))[0]).remove_headers) == []
    talk = in_flight(pb.BUFFERED, RENAMED)
    assert list(mutation(talk.say(response_headers(JSON))[0]).remove_headers) == []


# Modes in which each message gets one reply


@pytest.mark.parametrize("mode", [pb.STREAMED, pb.BUFFERED, pb.BUFFERED_PARTIAL, pb.NONE])
def test_an_unchanged_body_gets_plain_replies(mode: int) -> None:
    talk = in_flight(mode)
    talk.say(response_headers())
    replies = talk.say(response_body(TOKEN), response_body(TOKEN, True), response_body(b"", True))
    assert kinds(replies) == ["response_body"] * 3
    assert all(not r.response_body.response.HasField("body_mutation") for r in replies)
    assert talk.flight.sizes == [len(TOKEN)] * 2
    assert talk.flight.ends == [TerminationCause.NATURAL]


def test_a_streamed_chunk_is_replaced_one_for_one() -> None:
    talk = in_flight(pb.STREAMED, RENAMED)
    talk.say(response_headers())
    pieces = [b'{"model":"', b'm"}', b'"', b"x"]
    replies = talk.say(*[response_body(piece) for piece in pieces], response_body(b'"mod', True))
    assert [r.response_body.response.body_mutation.WhichOneof("mutation") for r in replies] == [
        "body",
        "body",
        "clear_body",
        "body",
        None,
    ]
    told = [r.response_body.response.body_mutation.body for r in replies]
    assert b"".join(told[:4]) == b'{"model":"asked"}"x'


def test_trailers_that_cut_a_name_in_streamed_mode_are_reported() -> None:
    talk = in_flight(pb.STREAMED, RENAMED)
    talk.say(response_headers(), response_body(b'x"mod'), response_trailers())
    assert "4 bytes lost" in str(talk.observer.failures[0])
    talk = in_flight(pb.STREAMED, RENAMED)
    talk.say(response_headers(), response_body(TOKEN), response_trailers())
    assert talk.observer.failures == []


def test_a_buffered_body_is_replaced_with_its_length() -> None:
    talk = in_flight(pb.BUFFERED, RENAMED)
    talk.say(response_headers(JSON))
    (reply,) = talk.say(response_body(b'{"model":"m"}"mod'))  # trailers follow, but no more body
    assert reply.response_body.response.body_mutation.body == b'{"model":"asked"}"mod'
    assert set_headers(reply) == {"content-length": "21"}
    assert kinds(talk.say(response_trailers())) == ["response_trailers"]
    assert talk.observer.failures == []


def test_a_partly_buffered_body_loses_its_length_when_the_rest_is_unseen() -> None:
    talk = in_flight(pb.BUFFERED_PARTIAL, RENAMED)
    talk.say(response_headers(JSON))
    (reply,) = talk.say(response_body(b'{"model":"m"}'))
    assert list(mutation(reply).remove_headers) == ["content-length"]
    talk = in_flight(pb.BUFFERED_PARTIAL, RENAMED)
    talk.say(response_headers(JSON))
    (reply,) = talk.say(response_body(b'{"model":"m"}', True))
    assert set_headers(reply) == {"content-length": "17"}


# The end without an end of stream


def test_a_gateway_that_sends_no_body_tells_the_end_by_half_closing() -> None:
    for messages in ([response_headers()], []):  # response headers may be skipped too
        talk = in_flight(pb.NONE)
        talk.say(*messages)
        assert talk.flight.ends == []
        assert talk.half_close() == []
        assert talk.flight.ends == [TerminationCause.NATURAL]
        assert talk.finished == (0, "")


@pytest.mark.parametrize("messages", [[], [response_headers()], [response_headers(), response_body(TOKEN)]])
@pytest.mark.parametrize("mode", [FDS, pb.STREAMED, pb.BUFFERED])
def test_a_half_close_before_the_end_is_a_client_that_went_away(mode: int, messages: list[bytes]) -> None:
    talk = in_flight(mode)
    talk.say(*messages)
    talk.half_close()
    assert talk.flight.ends == [TerminationCause.CLIENT_DISCONNECT]
    assert talk.finished == (0, "")


@pytest.mark.parametrize(
    ("mode", "lost", "cause"),
    [
        (FDS, False, TerminationCause.CLIENT_DISCONNECT),
        (FDS, True, TerminationCause.ERROR),
        (pb.NONE, False, TerminationCause.NATURAL),
        (pb.NONE, True, TerminationCause.ERROR),
    ],
)
def test_a_reset_is_like_a_half_close_and_a_lost_connection_is_an_error(
    mode: int, lost: bool, cause: TerminationCause
) -> None:
    talk = in_flight(mode)
    talk.say(response_headers())
    talk.exchange.close(lost=lost)
    talk.exchange.close(lost=lost)
    assert talk.flight.ends == [cause]
    assert talk.finished is not None
    assert talk.say(response_body(TOKEN)) == []


# Listeners that fail


@pytest.mark.parametrize("method", ["response_headers", "chunk", "stream_usage"])
def test_a_failing_listener_never_touches_the_bytes(method: str) -> None:
    talk = in_flight(fail_on=method, decision=RENAMED)
    talk.say(
        response_headers(), response_body(b""), response_body(USAGE), response_body(TOKEN), response_body(b"", True)
    )
    assert streamed(talk.replies, "response_body") == (USAGE + TOKEN.replace(b'"m"', b'"asked"'), True)
    assert talk.flight.ends == [TerminationCause.ERROR]
    assert len(talk.observer.failures) == 1
    assert talk.finished is None


def test_a_listener_that_fails_in_the_middle() -> None:
    talk = in_flight()
    talk.say(response_headers(), response_body(TOKEN))
    talk.flight.fail_on = "chunk"
    talk.say(response_body(TOKEN), response_body(USAGE), response_body(b"", True))
    assert streamed(talk.replies, "response_body") == (TOKEN + TOKEN + USAGE, True)
    assert talk.flight.ends == [TerminationCause.ERROR]


@pytest.mark.parametrize("method", ["body_usage", "end"])
def test_a_listener_that_fails_at_the_end(method: str) -> None:
    talk = in_flight(fail_on=method)
    talk.say(response_headers(JSON), response_body(b"{}", True))
    assert streamed(talk.replies, "response_body") == (b"{}", True)
    assert len(talk.flight.ends) == 1
    assert len(talk.observer.failures) == 1
