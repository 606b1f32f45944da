"""The hand-written body codec at its edges; tests/property/test_codec.py compares it with the protobuf library."""

from __future__ import annotations

import pytest

from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.wire import (
    PIECE,
    REQUEST_BODY,
    RESPONSE_BODY,
    body_span,
    chunk_span,
    echo_chunk,
    length_at,
    streamed_body,
    varint,
)
from tests.extproc_gateway import request_body, response_body

SERVED = {"envoy.lb": {"x-gateway-destination-endpoint-served": "10.0.0.1:8000"}}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 16383, 16384, 2**21, 2**28, 2**31])
def test_a_varint_reads_back(value: int) -> None:
    assert length_at(varint(value) + b"tail", 0) == (value, len(varint(value)))


def test_a_length_of_more_than_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        length_at(b"\xff" * 9 + b"\x01", 0)


@pytest.mark.parametrize(
    "size", [0, 1, 100, 116, 117, 118, 119, 127, 128, 1023, 1024, 16370, 16374, 16375, 61_999, PIECE]
)
@pytest.mark.parametrize("kind", [REQUEST_BODY, RESPONSE_BODY])
def test_a_reply_is_what_the_library_would_write(size: int, kind: int) -> None:
    body = b"x" * size
    (reply,) = streamed_body(kind, body, True)
    common = pb.CommonResponse(
        body_mutation=pb.BodyMutation(streamed_response=pb.StreamedBodyResponse(body=body, end_of_stream=True))
    )
    phase = "request_body" if kind == REQUEST_BODY else "response_body"
    expected = pb.ProcessingResponse(**{phase: pb.BodyResponse(response=common)})
    assert reply == expected.SerializeToString()


def test_a_long_body_travels_in_pieces_of_62_000_bytes_and_only_the_last_ends_it() -> None:
    body = bytes(range(256)) * 600
    pieces = [pb.ProcessingResponse.FromString(reply) for reply in streamed_body(REQUEST_BODY, body, True)]
    sent = [piece.request_body.response.body_mutation.streamed_response for piece in pieces]
    assert [len(piece.body) for piece in sent] == [62_000, 62_000, 29_600]
    assert b"".join(piece.body for piece in sent) == body
    assert [piece.end_of_stream for piece in sent] == [False, False, True]


def test_an_exact_multiple_has_no_empty_piece_behind_it() -> None:
    assert len(streamed_body(RESPONSE_BODY, b"x" * (2 * PIECE), True)) == 2


def test_nothing_is_said_for_nothing() -> None:
    assert streamed_body(RESPONSE_BODY, b"", False) == []


@pytest.mark.parametrize("size", [1, 100, 127, 128, 200, 1000, 1100, 20_000, PIECE])
@pytest.mark.parametrize("context", [None, SERVED])
def test_a_chunk_is_echoed_by_slicing(size: int, context: dict[str, dict[str, str]] | None) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    message = response_body(body[:size], context=context)
    span = chunk_span(message)
    assert span is not None
    http_body, start, stop = span
    assert message[start:stop] == body[:size]
    assert [echo_chunk(message, http_body, stop)] == streamed_body(RESPONSE_BODY, body[:size], False)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x2a",
        b"\x2a\x05",
        b"\x2a\x80",
        b"\x2a\xff\xff\xff\xff\xff\x01",
        b"\x2a\x00",  # nothing in it
        response_body(b"x", True),  # the last one
        response_body(b"x" * (PIECE + 1)),  # too long for one reply
        request_body(b"x"),
        response_body(b"x") + b"\x4a\x00",  # another field behind it
        response_body(b"x") + b"\x42\x05",  # metadata cut off
        response_body(b"x") + b"\x42\x81\x01" + b"m" * 128,  # long metadata cut off
        response_body(b"x")[:-1],
        b"\x2a\x04\x18\x01\x0a\x00",  # an unknown field first
        b"\x2a\x03\x0a\x05x",  # the body's length exceeds the message
    ],
)
def test_what_is_no_ordinary_chunk_is_left_to_others(message: bytes) -> None:
    assert chunk_span(message) is None


@pytest.mark.parametrize(
    ("message", "body", "end"),
    [
        (request_body(b""), b"", False),
        (request_body(b"", True), b"", True),
        (request_body(b"abc"), b"abc", False),
        (request_body(b"abc", True), b"abc", True),
        (request_body(b"abc", True, SERVED), b"abc", True),
        (b"\x22\x02\x10\x00", b"", False),  # a false that is written out
    ],
)
def test_a_body_is_found(message: bytes, body: bytes, end: bool) -> None:
    span = body_span(message)
    assert span is not None
    kind, start, stop, _, end_of_stream = span
    assert message[start:stop] == body
    assert end_of_stream is end
    assert kind == REQUEST_BODY


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x22",
        b"\x12\x00",
        b"\x22\x03\x0a\x01",
        b"\x22\x02\x10\x02",  # a true of another size
        b"\x22\x02\x18\x01",  # unknown field
        b"\x22\x04\x10\x01\x0a\x00",  # the other order
        b"\x22\x00\x22\x00",  # two bodies: the library merges them
        b"\x22\x00\x42\x01",
    ],
)
def test_another_shape_is_left_to_the_library(message: bytes) -> None:
    assert body_span(message) is None
