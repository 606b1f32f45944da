"""HTTP/2 frames as bytes (RFC 9113): types, flags, error codes, and the ones that never change, ready made."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

SETTINGS_HEADER_TABLE_SIZE = 1
SETTINGS_ENABLE_PUSH = 2
SETTINGS_MAX_CONCURRENT_STREAMS = 3
SETTINGS_INITIAL_WINDOW_SIZE = 4
SETTINGS_MAX_FRAME_SIZE = 5
SETTINGS_MAX_HEADER_LIST_SIZE = 6

DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
DEFAULT_FRAME_SIZE = 16_384
MAX_FRAME_SIZE = 2**24 - 1

HEADER = struct.Struct("!IBI")
"""Length and type in one word (`length << 8 | type`), flags, stream id."""
MESSAGE_HEADER = struct.Struct("!IBIBI")
"""The same, and the five bytes before a gRPC message: whole-message DATA frames are written and read in one step."""

_WORD = struct.Struct("!I")
_SETTING = struct.Struct("!HI")


class ErrorCode(IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The peer broke the protocol in a way that ends the connection with GOAWAY."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFault(Exception):
    """The peer broke the protocol in a way that ends one stream with RST_STREAM."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes before every payload."""
    return HEADER.pack(length << 8 | kind, flags, stream_id)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame_header(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK = frame_header(0, SETTINGS, ACK, 0)


def ping_ack(payload: bytes) -> bytes:
    """The answer to a PING."""
    return frame_header(8, PING, ACK, 0) + payload


def ping(payload: bytes) -> bytes:
    """A PING; 8 bytes of payload."""
    return frame_header(8, PING, 0, 0) + payload


def window_update(stream_id: int, increment: int) -> bytes:
    """Credit for a stream, or for the connection (0)."""
    return frame_header(4, WINDOW_UPDATE, 0, stream_id) + _WORD.pack(increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """The end of one stream."""
    return frame_header(4, RST_STREAM, 0, stream_id) + _WORD.pack(code)


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """No stream above `last_stream_id` will be served."""
    payload = struct.pack("!II", last_stream_id, code) + reason.encode("ascii", "replace")
    return frame_header(len(payload), GOAWAY, 0, 0) + payload


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Identifier and value pairs, in order. Raises `ConnectionFault`."""
    if len(payload) % 6:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS length is no multiple of 6")
    return list(_SETTING.iter_unpack(payload))


def word(payload: bytes, name: str) -> int:
    """The 32-bit payload of WINDOW_UPDATE and RST_STREAM. Raises `ConnectionFault`."""
    if len(payload) != 4:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{name} length {len(payload)}, expected 4")
    return int(_WORD.unpack(payload)[0])


def unpad(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Where the content of a PADDED payload `data[start:stop]` lies. Raises `ConnectionFault`."""
    if start == stop:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padded frame without pad length")
    stop -= data[start]
    start += 1
    if stop < start:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return start, stop
