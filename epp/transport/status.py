"""The header blocks that a gRPC server sends: response headers, trailers, and answers to what is no gRPC call.

All are literals that enter no table, so that they are the same bytes on every connection.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_LONGEST_MESSAGE: Final = 1024  # bytes; peers bound the size of trailers (8 KiB in gRPC), and it ends in logs


def literal(name: bytes, value: bytes) -> bytes:
    """One header field for a block: literal, never Huffman-coded, not indexed (RFC 7541 section 6.2.2)."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    rest = len(text) - 127
    if rest < 0:
        return bytes((len(text),)) + text
    length = bytearray((127,))
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    return bytes(length) + text


RESPONSE: Final = b"\x88" + literal(b"content-type", b"application/grpc")  # 0x88: `:status: 200` of the static table
TRAILERS_OK: Final = literal(b"grpc-status", b"0")


def percent_encode(text: str) -> bytes:
    """`grpc-message`: printable ASCII as it is, all else and `%` as %XX of its UTF-8 bytes; cut at a whole sequence."""
    pieces: list[bytes] = []
    size = 0
    for character in text:
        raw = character.encode("utf-8", "replace")
        piece = raw if 0x20 <= raw[0] < 0x7F and raw != b"%" else b"".join(b"%%%02X" % byte for byte in raw)
        size += len(piece)
        if size > _LONGEST_MESSAGE:
            break
        pieces.append(piece)
    return b"".join(pieces).strip(b" ")  # HTTP/2 forbids spaces at the ends of a value


def trailers(code: int, message: str = "") -> bytes:
    """The block that ends a call."""
    if code == OK and not message:
        return TRAILERS_OK
    block = literal(b"grpc-status", str(code).encode())
    return block + literal(b"grpc-message", percent_encode(message)) if message else block


def trailers_only(code: int, message: str = "") -> bytes:
    """A whole answer in one block: the call ended before the first message."""
    return RESPONSE + trailers(code, message)


def _plain(status: int) -> bytes:
    return literal(b":status", str(status).encode()) + literal(b"content-length", b"0")


STATUS_405: Final = _plain(405) + literal(b"allow", b"POST")
STATUS_415: Final = _plain(415)
STATUS_431: Final = _plain(431)
INVALID_ENCODING: Final = trailers_only(
    UNIMPLEMENTED, "this grpc-encoding is not supported, use identity or gzip"
) + literal(b"grpc-accept-encoding", b"identity,gzip")
