"""Conversations that a gateway may have: whatever the mode and the split, every byte arrives, and flights end once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epp.api import TerminationCause
from epp.director.flight import Decision
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.restore import ModelRestorer
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
    streamed,
)

PIECES = st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([b"x" * 70_000, b'"model":"', b'm"'])), max_size=6)


@given(
    modes=st.sampled_from([(FDS, FDS), (pb.GRPC, pb.GRPC), None]),
    pieces=PIECES,
    ending=st.sampled_from(["eos", "empty", "trailers"]),
    changed=st.none() | st.binary(max_size=70_000),
)
def test_in_full_duplex_the_server_gets_the_body(
    modes: tuple[int, int] | None, pieces: list[bytes], ending: str, changed: bytes | None
) -> None:
    talk = Conversation(ObedientDirector(Decision(destination="10.0.0.1:8000", body=changed)))
    last = pieces.pop() if ending == "eos" and pieces else b""
    assert talk.say(request_headers(modes=modes), *map(request_body, pieces)) == []
    talk.say(request_trailers() if ending == "trailers" else request_body(last, True))
    sent = b"".join(pieces) + last
    assert kinds(talk.replies)[0] == "request_headers"
    assert streamed(talk.replies, "request_body") == (sent if changed is None else changed, ending != "trailers")
    assert (kinds(talk.replies)[-1] == "request_trailers") == (ending == "trailers")
    assert talk.director.asked[0][1] == (sent or None)
    talk.exchange.close()
    assert len(talk.flight.ends) == 1


@given(
    mode=st.sampled_from([FDS, pb.STREAMED]),
    pieces=PIECES,
    content_type=st.sampled_from(["text/event-stream", "application/json", "image/png"]),
    ending=st.sampled_from(["eos", "empty", "trailers", "half-close", "reset"]),
    rename=st.booleans(),
    skip_headers=st.booleans(),
)
def test_the_client_gets_the_answer(
    mode: int, pieces: list[bytes], content_type: str, ending: str, rename: bool, skip_headers: bool
) -> None:
    decision = Decision(destination="10.0.0.1:8000", restore_model=("m", "asked") if rename else None)
    talk = Conversation(ObedientDirector(decision))
    talk.say(request_headers(modes=(FDS, mode), end_of_stream=True))
    if not skip_headers:
        talk.say(response_headers({":status": "200", "content-type": content_type}))
    talk.replies.clear()
    body = b"".join(pieces)
    last = pieces.pop() if ending == "eos" and pieces else b""
    told = b""
    for piece in [*pieces, last] if ending in ("eos", "empty") else pieces:
        at_end = ending in ("eos", "empty") and talk.flight.response.body_size == len(pieces)
        replies = talk.say(response_body(piece, at_end))
        talk.flight.response.body_size += 1  # counts the messages here
        if mode == FDS:
            told += streamed(replies, "response_body")[0]
        else:
            assert kinds(replies) == ["response_body"]
            change = replies[0].response_body.response.body_mutation
            told += piece if change.WhichOneof("mutation") is None else change.body
    if ending == "trailers":
        replies = talk.say(response_trailers())
        assert kinds(replies)[-1] == "response_trailers"
        if mode == FDS:
            told += streamed(replies, "response_body")[0]
    elif ending == "half-close":
        talk.half_close()
    elif ending == "reset":
        talk.exchange.close()
    natural = ending in ("eos", "empty", "trailers")
    assert talk.flight.ends == [TerminationCause.NATURAL if natural else TerminationCause.CLIENT_DISCONNECT]
    assert sum(talk.flight.sizes) == len(body)
    renamed = rename and (skip_headers or content_type != "image/png")
    expected = ModelRestorer("m", "asked").feed(body, last=True) if renamed else body
    if ending in ("eos", "empty") or (natural and mode == FDS):
        assert told == expected
    else:  # what may still become a name is held back
        assert expected.startswith(told)
        assert len(expected) - len(told) < (len(b'"model": "m"') if renamed else 1)
