"""The hand-written codec against the protobuf library: any split, any field order, unknown fields, any bytes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.codec import KIND_NAMES, Incoming, InvalidMessage, decode
from epp.extproc.header_wire import KnownHeaders, header_message
from epp.extproc.metadata import SERVED, SUBSET, served_endpoint, subset_hint
from epp.extproc.wire import PIECE, REQUEST_BODY, RESPONSE_BODY, chunk_span, echo_chunk, streamed_body, varint

BODIES = st.one_of(st.binary(max_size=40), st.integers(0, 140_000).map(lambda size: b"\x2a\x0a\x42" * (size // 3)))


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def unknown(draw: st.DrawFn) -> bytes:
    number = draw(st.integers(20, 4000))
    kind = draw(st.sampled_from(["varint", "bytes", "fixed32", "fixed64"]))
    if kind == "varint":
        return varint(number << 3) + varint(draw(st.integers(0, 2**40)))
    if kind == "bytes":
        return field(number, draw(st.binary(max_size=20)))
    if kind == "fixed32":
        return varint(number << 3 | 5) + draw(st.binary(min_size=4, max_size=4))
    return varint(number << 3 | 1) + draw(st.binary(min_size=8, max_size=8))


@st.composite
def http_bodies(draw: st.DrawFn) -> bytes:
    """An HttpBody as any writer might write it."""
    parts = [b""]
    if draw(st.booleans()):
        parts.append(field(1, draw(BODIES)))
    if draw(st.booleans()):
        parts.append(b"\x10" + varint(draw(st.sampled_from([0, 1, 1, 2, 300]))))
    if draw(st.integers(0, 3)) == 0:
        parts.append(unknown(draw))
    if draw(st.integers(0, 3)) == 0:
        parts = draw(st.permutations(parts))
    return b"".join(parts)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A ProcessingRequest as any writer might write it, mostly in the usual order."""
    number = draw(st.sampled_from([2, 3, 4, 4, 4, 5, 5, 5, 6, 7]))
    parts = [field(number, draw(http_bodies()) if number in (4, 5) else b"")]
    if draw(st.booleans()):
        context = pb.Metadata()
        context.filter_metadata["envoy.lb"].update({"key": draw(st.text(max_size=200))})
        parts.append(field(8, context.SerializeToString()))
    if draw(st.integers(0, 4)) == 0:
        parts.append(draw(st.sampled_from([b"\x4a\x00", b"\x50\x01", b"\x5a\x02\x08\x04", b"\x22\x00", b"\x2a\x00"])))
    if draw(st.integers(0, 4)) == 0:
        parts.append(unknown(draw))
    if draw(st.integers(0, 4)) == 0:
        parts = draw(st.permutations(parts))
    message = b"".join(parts)
    if draw(st.integers(0, 9)) == 0:
        message = message[: draw(st.integers(0, len(message)))]
    return message


def judge(message: bytes) -> pb.ProcessingRequest | None:
    try:
        return pb.ProcessingRequest.FromString(message)
    except DecodeError:
        return None


def without_metadata(message: bytes) -> pb.ProcessingRequest:
    """For a message whose metadata is broken, which the fast path does not look at: the part in front of it."""
    at = len(message)
    while True:
        at = message.rindex(b"\x42", 0, at)
        judged = judge(message[:at])
        if judged is not None and judged.WhichOneof("request"):
            return judged


@given(st.one_of(messages(), st.binary(max_size=60), st.binary(max_size=30).map(lambda data: b"\x2a" + data)))
def test_whatever_comes_is_read_as_the_library_reads_it(message: bytes) -> None:
    judged = judge(message)
    try:
        incoming = decode(message)
    except InvalidMessage:
        assert judged is None
        return
    if judged is None:
        judged = without_metadata(message)
        assert incoming.served() == ""
    assert KIND_NAMES.get(incoming.kind) == judged.WhichOneof("request")
    if incoming.kind in (REQUEST_BODY, RESPONSE_BODY):
        part = judged.request_body if incoming.kind == REQUEST_BODY else judged.response_body
        assert (incoming.body, incoming.end_of_stream) == (part.body, part.end_of_stream)


@st.composite
def header_values(draw: st.DrawFn) -> bytes:
    """A HeaderValue as any writer might write it, mostly name and `raw_value`."""
    name = draw(st.one_of(st.sampled_from(["accept", "X-Mixed", ":path"]), st.text(max_size=200))).encode()
    parts = [field(1, name if draw(st.integers(0, 9)) else b"\xff\xfe")]
    if draw(st.integers(0, 9)):
        parts.append(field(3, draw(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))))
    if draw(st.integers(0, 7)) == 0:
        parts.append(field(2, draw(st.text(max_size=20)).encode()))
    if draw(st.integers(0, 15)) == 0:
        parts.append(unknown(draw))
    if draw(st.integers(0, 7)) == 0:
        parts = draw(st.permutations(parts))
    return b"".join(parts)


@st.composite
def header_messages(draw: st.DrawFn) -> bytes:
    """A message with headers, mostly as Envoy writes it; sometimes cut, or with a byte changed."""
    values = draw(st.lists(header_values(), max_size=6))
    inner = [field(1, b"".join(field(1, value) for value in values))]
    if draw(st.booleans()):
        inner.append(b"\x18" + varint(draw(st.sampled_from([0, 1, 1, 2]))))
    if draw(st.integers(0, 9)) == 0:
        inner.append(draw(st.sampled_from([inner[0], b"\x12\x00", unknown(draw)])))
    parts = [field(draw(st.sampled_from([2, 3])), b"".join(inner))]
    if draw(st.booleans()):
        context = pb.Metadata()
        name = draw(st.sampled_from(["envoy.lb", "envoy.lb.subset_hint"]))
        told = "10.0.0.1:80"
        context.filter_metadata[name].update({draw(st.sampled_from([SUBSET, SERVED, "other"])): told})
        parts.append(field(8, context.SerializeToString()))
    if draw(st.integers(0, 9)) == 0:
        parts.append(draw(st.sampled_from([b"\x4a\x00", b"\x50\x01", b"\x12\x00", b"\x22\x00", b"\x5a\x00"])))
    if draw(st.booleans()):
        modes = st.sampled_from([b"", b"\x08\x04", b"\x10\x02", b"\x08\x04\x10\x00", b"\x18\x01", b"\x08\xff\x01"])
        parts.append(field(11, b"".join(draw(st.lists(modes, max_size=2)))))
    if draw(st.integers(0, 9)) == 0:
        parts = draw(st.permutations(parts))
    message = bytearray(b"".join(parts))
    if draw(st.integers(0, 4)) == 0:
        del message[draw(st.integers(0, len(message))) :]
    if message and draw(st.integers(0, 4)) == 0:
        message[draw(st.integers(0, len(message) - 1))] = draw(st.integers(0, 255))
    return bytes(message)


@settings(max_examples=400)
@given(header_messages())
def test_headers_are_read_as_the_library_reads_them(message: bytes) -> None:
    judged = judge(message)
    try:
        incoming = decode(message)
    except InvalidMessage:
        assert judged is None
        return
    if judged is None:  # broken metadata, which nobody asked for
        judged = without_metadata(message)
        assert incoming.served() == ""
        assert incoming.subset() is None
    else:
        assert incoming.served() == served_endpoint(judged.metadata_context)
        assert incoming.subset() == subset_hint(judged.metadata_context)
        config = judged.protocol_config
        expected = (config.request_body_mode, config.response_body_mode) if judged.HasField("protocol_config") else None
        assert incoming.modes() == expected
    kind = judged.WhichOneof("request")
    assert KIND_NAMES.get(incoming.kind) == kind
    if kind in ("request_headers", "response_headers"):
        part = getattr(judged, kind)
        assert incoming.end_of_stream == part.end_of_stream
        assert incoming.headers() == {
            header.key.lower(): header.raw_value.decode("utf-8", "backslashreplace") or header.value
            for header in part.headers.headers
        }


def test_the_usual_headers_do_not_need_the_library() -> None:
    request = pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(
            headers=pb.HeaderMap(
                headers=[
                    pb.HeaderValue(key=":path", raw_value=b"/v1/chat/completions"),
                    pb.HeaderValue(key="x-empty"),
                    pb.HeaderValue(key="cookie", raw_value=b"\xff" * 300),
                ]
            )
        ),
        metadata_context=pb.Metadata(),
        protocol_config=pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED),
    )
    known = KnownHeaders()
    for _ in range(2):  # as new, and as known
        told = header_message(request.SerializeToString(), known)
        assert told is not None
        _, headers, _, modes, _ = told
        assert headers == {":path": "/v1/chat/completions", "x-empty": "", "cookie": "\\xff" * 300}
        assert modes == (pb.FULL_DUPLEX_STREAMED, pb.NONE)
    assert list(known.entries.values()) == [(":path", "/v1/chat/completions"), ("x-empty", "")]
    assert list(known.tails.values()) == [modes]


def seen(incoming: Incoming) -> object:
    """All that can be asked of a header message."""
    return (
        *(incoming.kind, incoming.end_of_stream, incoming.headers()),
        *(incoming.modes(), incoming.subset(), incoming.served()),
    )


@settings(max_examples=200)
@given(st.lists(header_messages(), min_size=2, max_size=5))
def test_what_is_known_of_earlier_headers_changes_nothing(messages: list[bytes]) -> None:
    known = KnownHeaders()
    for message in messages * 2:
        try:
            fresh = seen(decode(message))
        except InvalidMessage:
            with pytest.raises(InvalidMessage):
                decode(message, known)
        else:
            assert seen(decode(message, known)) == fresh


def test_what_is_kept_of_headers_is_bounded() -> None:
    known = KnownHeaders()
    for number in range(3000):
        known.keep_entry(b"entry %d" % number, "n", "v")
        known.keep_tail(b"tail %d" % number, None)
        assert len(known.entries) <= 1024
        assert len(known.tails) <= 256
    before = len(known.entries)
    known.keep_entry(b"e" * 130, "n", "v")
    known.keep_tail(b"t" * 130, None)
    known.keep_entry(b"secret", "authorization", "v")
    assert len(known.entries) == before
    assert b"t" * 130 not in known.tails


@given(st.one_of(messages(), st.binary(max_size=30).map(lambda data: b"\x2a" + data)))
def test_a_chunk_that_is_echoed_by_slicing_comes_back_as_it_was(message: bytes) -> None:
    span = chunk_span(message)
    if span is None:
        return
    http_body, start, stop = span
    judged = judge(message) or without_metadata(message)
    assert judged.WhichOneof("request") == "response_body"
    assert not judged.response_body.end_of_stream
    assert judged.response_body.body == message[start:stop]
    reply = pb.ProcessingResponse.FromString(echo_chunk(message, http_body, stop))
    assert reply.WhichOneof("response") == "response_body"
    mutation = reply.response_body.response.body_mutation
    assert mutation.streamed_response == pb.StreamedBodyResponse(body=judged.response_body.body)


@given(body=BODIES, end=st.booleans(), kind=st.sampled_from([REQUEST_BODY, RESPONSE_BODY]))
def test_replies_hand_on_every_byte(body: bytes, end: bool, kind: int) -> None:
    replies = [pb.ProcessingResponse.FromString(reply) for reply in streamed_body(kind, body, end)]
    phase = "request_body" if kind == REQUEST_BODY else "response_body"
    pieces = [getattr(reply, phase).response.body_mutation.streamed_response for reply in replies]
    assert b"".join(piece.body for piece in pieces) == body
    assert all(len(piece.body) <= PIECE for piece in pieces)
    assert [piece.end_of_stream for piece in pieces] == [False] * (len(pieces) - 1) + [end] * bool(pieces)
    assert bool(pieces) == bool(body or end)


@pytest.mark.parametrize("size", range(60, 140))
@pytest.mark.parametrize("extra", [0, 16_240])
def test_sizes_around_a_longer_length(size: int, extra: int) -> None:
    body = b"x" * (size + extra)
    message = pb.ProcessingRequest(response_body=pb.HttpBody(body=body)).SerializeToString()
    span = chunk_span(message)
    assert span is not None
    assert [echo_chunk(message, span[0], span[2])] == streamed_body(RESPONSE_BODY, body, False)
    mutation = pb.BodyMutation(streamed_response=pb.StreamedBodyResponse(body=body))
    response = pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))
    assert streamed_body(RESPONSE_BODY, body, False) == [
        pb.ProcessingResponse(response_body=response).SerializeToString()
    ]
