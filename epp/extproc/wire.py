"""Body messages by hand: where the bytes lie in a message, and the reply that sends them back.

A long answer is one message per token, so these messages are most of the work. A `ProcessingRequest` with a body is a
tag, a length, the `HttpBody`, and usually metadata behind it; and `HttpBody` has the layout of the
`StreamedBodyResponse` that returns it. So the reply to a chunk is a constant prefix plus a slice of the message.
Whatever has another shape (other field order, unknown fields) is left to the protobuf library (`codec.decode`).
"""

from __future__ import annotations

from typing import Final

# Field numbers in ProcessingRequest; they serve as the kind of an incoming message.
REQUEST_HEADERS: Final = 2
RESPONSE_HEADERS: Final = 3
REQUEST_BODY: Final = 4
RESPONSE_BODY: Final = 5
REQUEST_TRAILERS: Final = 6
RESPONSE_TRAILERS: Final = 7

PIECE: Final = 62_000
"""Most body bytes in one reply. Google's load balancer takes messages up to 64 KiB; llm-d-router uses this number."""

_METADATA_TAG: Final = 0x42  # metadata_context = 8
_BODY_TAG: Final = 0x0A  # HttpBody.body = 1
_END_TAG: Final = 0x10  # HttpBody.end_of_stream = 2
_REPLY_TAGS: Final = {REQUEST_BODY: 0x1A, RESPONSE_BODY: 0x22}  # ProcessingResponse.request_body 3, response_body 4


BodySpan = tuple[int, int, int, int, bool]
"""`(kind, start, stop, rest, end_of_stream)` of an `HttpBody` in a message: the body is `[start:stop]`, metadata begins
at `rest`."""


def varint(value: int) -> bytes:
    """`value` in protobuf's base-128 encoding."""
    if value < 128:
        return bytes((value,))
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def length_at(message: bytes, at: int) -> tuple[int, int]:
    """The length written at `at`, and where what it measures begins. IndexError or ValueError when there is none."""
    value = message[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in (7, 14, 21, 28):
        at += 1
        digit = message[at]
        value |= (digit & 127) << shift
        if digit < 128:
            return value, at + 1
    raise ValueError("a length of more than 32 bits")


def body_span(message: bytes) -> BodySpan | None:
    """Where the body lies in a body message of the usual shape; None: leave it to the protobuf library."""
    try:
        tag = message[0]
        if tag not in (0x22, 0x2A):
            return None
        size, at = length_at(message, 1)
        rest = at + size
        total = len(message)
        if rest != total:
            if message[rest] != _METADATA_TAG:
                return None
            size, metadata = length_at(message, rest + 1)
            if metadata + size != total:
                return None
        start = stop = at
        if at != rest and message[at] == _BODY_TAG:
            size, start = length_at(message, at + 1)
            at = stop = start + size
        end_of_stream = False
        if at != rest:
            if at + 2 != rest or message[at] != _END_TAG or message[at + 1] > 1:
                return None
            end_of_stream = message[at + 1] == 1
    except (IndexError, ValueError):
        return None
    return tag >> 3, start, stop, rest, end_of_stream


def chunk_span(message: bytes) -> tuple[int, int, int] | None:
    """`(http_body, start, stop)` of a non-empty response chunk that is not the last and at most `PIECE` long.

    The strict twin of `body_span` for one call per token: no object, the usual two sizes of a length in place.
    """
    try:
        if message[0] != 0x2A:
            return None
        size = message[1]
        at = 2
        if size > 127:
            size = size & 127 | message[2] << 7
            at = 3
            if size > 16383:
                size, at = length_at(message, 1)
        stop = at + size
        total = len(message)
        if stop != total:
            size = message[stop + 1]
            metadata = stop + 2
            if size > 127:
                size, metadata = length_at(message, stop + 1)
            if message[stop] != _METADATA_TAG or metadata + size != total:
                return None
        if message[at] != _BODY_TAG:
            return None
        size = message[at + 1]
        start = at + 2
        if size > 127:
            size, start = length_at(message, at + 1)
        if start + size != stop or not 0 < size <= PIECE:
            return None
    except (IndexError, ValueError):
        return None
    return at, start, stop


def _prefix(kind: int, size: int) -> bytes:
    """What stands before a `StreamedBodyResponse` of `size` bytes: streamed_response in body_mutation in response."""
    tag = _REPLY_TAGS[kind]
    if 128 <= size < 16375:  # all four lengths take two bytes
        a, b, c, d = size + 9, size + 6, size + 3, size
        return bytes(
            (
                *(tag, a & 127 | 128, a >> 7, 0x0A, b & 127 | 128, b >> 7),
                *(0x1A, c & 127 | 128, c >> 7, 0x1A, d & 127 | 128, d >> 7),
            )
        )
    prefix = b""
    for outer in (0x1A, 0x1A, 0x0A, tag):
        prefix = bytes((outer,)) + varint(size + len(prefix)) + prefix
    return prefix


_SMALL: Final = 1024
_CHUNK_PREFIXES: Final = tuple(_prefix(RESPONSE_BODY, size) for size in range(_SMALL))


def echo_chunk(message: bytes, http_body: int, stop: int) -> bytes:
    """The reply that sends a response chunk back as it came; the arguments are `chunk_span`'s."""
    size = stop - http_body
    return (_CHUNK_PREFIXES[size] if size < _SMALL else _prefix(RESPONSE_BODY, size)) + message[http_body:stop]


def streamed_body(kind: int, body: bytes, end_of_stream: bool) -> list[bytes]:
    """Replies that hand `body` on in full duplex, in pieces of at most `PIECE` bytes, the last one with the end.

    Nothing for an empty body that does not end the stream: Envoy takes an empty reply for a spurious one.
    """
    size = len(body)
    if size <= PIECE:
        return [_piece(kind, body, end_of_stream)] if size or end_of_stream else []
    return [
        _piece(kind, body[start : start + PIECE], end_of_stream and start + PIECE >= size)
        for start in range(0, size, PIECE)
    ]


def _piece(kind: int, body: bytes, end_of_stream: bool) -> bytes:
    head = b"\x0a" + varint(len(body)) if body else b""
    tail = b"\x10\x01" if end_of_stream else b""
    return b"".join((_prefix(kind, len(head) + len(body) + len(tail)), head, body, tail))
