"""Header blocks: decoding with its bounds and rules, and the few blocks that a gRPC server sends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from epp.transport.frames import ConnectionFault, ErrorCode
from epp.transport.status import INVALID_ENCODING, STATUS_405, STATUS_415, STATUS_431

Metadata = tuple[tuple[bytes, bytes], ...]

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9110 token in lower case, as RFC 9113 section 8.2 wants it
_BAD_VALUE = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONNECTION_SPECIFIC: Final = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_REQUEST_PSEUDO: Final = {b":method", b":scheme", b":path", b":authority"}
_CACHED_BLOCKS: Final = 256
_CACHED_BLOCK_SIZE: Final = 512
_HARD_FACTOR: Final = 4  # a list this much over the limit ends the connection instead of being answered


class MalformedError(Exception):
    """The headers break RFC 9113 section 8: the stream is reset with PROTOCOL_ERROR."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the headers of a request say, checked; shared by all streams that came with the same block.

    `refusal`: a complete answer (a header block) for a request that is none of ours, else None. `timeout` in seconds.
    """

    path: str
    metadata: Metadata
    refusal: bytes | None = None
    gzip: bool = False
    timeout: float | None = None
    content_length: int | None = None


class _WatchedTable(HeaderTable):
    """A dynamic table that tells when it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def add(self, name: bytes, value: bytes) -> None:
        self.changed = True
        super().add(name, value)


class HeaderDecoder:
    """HPACK of one connection, the peer's half.

    A proxy sends the same few headers on every stream, so that after the first ones a block is a handful of table
    indexes. What such a block means is remembered until the table changes.
    """

    __slots__ = ("_decoder", "_headers", "_known", "_size", "_table")

    def __init__(self, *, header_list: int, headers: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=header_list * _HARD_FACTOR)
        self._table = _WatchedTable()
        self._decoder.header_table = self._table
        self._size = header_list
        self._headers = headers
        self._known: dict[bytes, RequestHead] = {}

    def request(self, block: bytes) -> RequestHead:
        """The head of a request. Raises `ConnectionFault` when the block cannot be decoded, else `MalformedError`."""
        known = self._known.get(block)
        if known is not None:
            return known
        headers = self._decode(block)
        size = sum(len(name) + len(value) + 32 for name, value in headers)
        if size > self._size or len(headers) > self._headers:
            return RequestHead("", (), refusal=STATUS_431)
        head = read_head(headers)
        if len(block) <= _CACHED_BLOCK_SIZE and not self._table.changed:
            if len(self._known) >= _CACHED_BLOCKS:
                self._known.clear()
            self._known[block] = head
        return head

    def trailers(self, block: bytes) -> None:
        """Decode and check trailers; nothing in them concerns us. Raises like `request`."""
        for name, value in self._decode(block):
            if name[:1] == b":":
                raise MalformedError(f"{name!r} in trailers")
            _check(name, value)

    def skip(self, block: bytes) -> None:
        """Decode for the table's sake: the stream is gone. Raises `ConnectionFault`."""
        self._decode(block)

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        table = self._table
        table.changed = False
        try:
            decoded = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header list is far too large") from error
        except (HPACKError, UnicodeDecodeError, IndexError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block cannot be decoded") from error
        if table.resized or (block[:1] and block[0] & 0xE0 == 0x20):  # 001xxxxx: the table was resized
            table.changed = True
            table.resized = False
        if table.changed:
            self._known.clear()
        return decoded


def _check(name: bytes, value: bytes) -> None:
    """One regular header field (RFC 9113 section 8.2). Raises `MalformedError`."""
    if _TOKEN.fullmatch(name) is None or name in _CONNECTION_SPECIFIC:
        raise MalformedError(f"header name {name!r} is not allowed")
    if _BAD_VALUE.search(value) is not None:
        raise MalformedError(f"the value of header {name!r} is not allowed")
    if name == b"te" and value != b"trailers":
        raise MalformedError("te may only be trailers")


def read_head(headers: Sequence[tuple[bytes, bytes]]) -> RequestHead:
    """Check a request's headers and read what matters to gRPC. Raises `MalformedError`."""
    pseudo: dict[bytes, bytes] = {}
    metadata: list[tuple[bytes, bytes]] = []
    content_type = encoding = b""
    timeout: float | None = None
    content_length: int | None = None
    for name, value in headers:
        if name[:1] == b":":
            if metadata or name in pseudo or name not in _REQUEST_PSEUDO:
                raise MalformedError(f"pseudo-header {name!r} is out of place")
            if _BAD_VALUE.search(value) is not None:
                raise MalformedError(f"the value of {name!r} is not allowed")
            pseudo[name] = value
            continue
        _check(name, value)
        metadata.append((name, value))
        if name == b"content-type":
            content_type = value
        elif name == b"grpc-encoding":
            encoding = value
        elif name == b"grpc-timeout":
            timeout = read_timeout(value)
        elif name == b"content-length":
            if not value.isdigit() or len(value) > 18 or content_length not in (None, int(value)):
                raise MalformedError("content-length is not a number")
            content_length = int(value)
    path = pseudo.get(b":path", b"")
    if not path or b":method" not in pseudo or b":scheme" not in pseudo:
        raise MalformedError("a request needs :method, :scheme and :path")
    refusal = None
    if not is_grpc(content_type):
        refusal = STATUS_415
    elif pseudo[b":method"] != b"POST":
        refusal = STATUS_405
    elif encoding not in (b"", b"identity", b"gzip"):
        refusal = INVALID_ENCODING
    return RequestHead(path.decode("latin-1"), tuple(metadata), refusal, encoding == b"gzip", timeout, content_length)


def is_grpc(content_type: bytes) -> bool:
    """Whether it is `application/grpc`, with or without `+proto` or parameters."""
    return content_type[:16].lower() == b"application/grpc" and content_type[16:17] in (b"", b"+", b";", b" ")


def read_timeout(value: bytes) -> float | None:
    """`grpc-timeout` in seconds; None when it is not one (gRPC: at most 8 digits and a unit)."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _SECONDS[match[2]] if match else None
