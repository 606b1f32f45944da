"""Reads one HTTP/1.1 response at a time from bytes that arrive in any pieces. No sockets here.

Understood (RFC 9112): `content-length`, `chunked` with extensions and trailers, bodies that end with the connection,
interim 1xx responses, and `gzip` (which is never asked for, but some servers send it). Everything has a bound.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

MAX_HEAD = 32 * 1024
_MAX_CHUNK_LINE = 1024
_NO_BODY = (204, 304)


class HttpError(Exception):
    """The server did not answer with a response that can be used; says what was wrong."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response. `reusable`: the connection may carry another request."""

    status: int
    body: bytes
    reusable: bool


@dataclass(frozen=True, slots=True)
class Head:
    """What a response head says. `framing` of the body: `length`, `chunked` or `eof` (it ends with the connection)."""

    status: int
    framing: str
    length: int
    gzip: bool
    reusable: bool


def read_head(text: bytes) -> Head | None:
    """Status line and headers, without the empty line; None for an interim response. Raises `HttpError`."""
    lines = text.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    code = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit() or len(code) != 3 or rest[3:4].strip():
        raise HttpError(f"not an HTTP/1 response: {lines[0][:80]!r}")
    status = int(code)
    if 100 <= status < 200:
        if status == 101:
            raise HttpError("unexpected switch of protocols")
        return None
    length: int | None = None
    chunked = gzip = False
    keep_alive = version == b"HTTP/1.1"
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            raise HttpError(f"malformed header line {line[:80]!r}")
        name, value = name.lower(), value.strip().lower()
        if name == b"content-length":
            if not value.isdigit() or len(value) > 15 or length not in (None, int(value)):
                raise HttpError(f"bad content-length {value[:40]!r}")
            length = int(value)
        elif name == b"transfer-encoding":
            if value != b"chunked":
                raise HttpError(f"unsupported transfer-encoding {value[:40]!r}")
            chunked = True
        elif name == b"content-encoding":
            if value not in (b"gzip", b"identity", b""):
                raise HttpError(f"unsupported content-encoding {value[:40]!r}")
            gzip = value == b"gzip"
        elif name == b"connection":
            options = {option.strip() for option in value.split(b",")}
            keep_alive = (keep_alive or b"keep-alive" in options) and b"close" not in options
    reusable = keep_alive and not (chunked and length is not None)
    if status in _NO_BODY:
        return Head(status, "length", 0, gzip, reusable)
    if chunked:
        return Head(status, "chunked", 0, gzip, reusable)
    if length is not None:
        return Head(status, "length", length, gzip, reusable)
    return Head(status, "eof", 0, gzip, reusable=False)


class ResponseReader:
    """`feed` bytes until it returns the response; then it is ready for the next one on the same connection.

    `max_body` bounds the body in bytes, after decompression too.
    """

    __slots__ = ("_body", "_buffer", "_head", "_known", "_length", "_position", "max_body")

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self._known: tuple[bytes, Head] | None = None  # the last head: most are like the one before
        self._reset()

    def _reset(self) -> None:
        self._head: Head | None = None
        self._buffer = bytearray()  # what has come of the head; after it, of the body
        self._position = 0
        self._body: list[bytes] = []
        self._length = 0

    @property
    def started(self) -> bool:
        """Whether any byte of a response has arrived."""
        return self._head is not None or bool(self._buffer)

    def feed(self, data: bytes | memoryview) -> HttpResponse | None:
        """The response when these bytes complete it. Raises `HttpError` when they cannot belong to one."""
        if self._head is None:
            rest = self._take_head(data)
            if rest is None:
                return None
            data = rest
        head = self._head
        assert head is not None
        if head.framing == "length" and not self._buffer and len(data) == head.length:
            return self._response(bytes(data))
        buffer = self._buffer
        buffer += data
        if head.framing == "chunked":
            return self._read_chunks()
        if head.framing == "eof":
            if len(buffer) > self.max_body:
                raise HttpError(f"response body longer than {self.max_body} bytes")
            return None
        if len(buffer) > head.length:
            raise HttpError("bytes after the response")
        return self._response(bytes(buffer)) if len(buffer) == head.length else None

    def eof(self) -> HttpResponse:
        """The connection ended: the response if its body lasts until then, else `HttpError`."""
        if self._head is not None and self._head.framing == "eof":
            return self._response(bytes(self._buffer))
        if not self.started:
            raise HttpError("connection closed before a response")
        raise HttpError("connection closed in the middle of a response")

    def _take_head(self, data: bytes | memoryview) -> bytes | memoryview | None:
        """Sets `_head`; returns what follows it. None: the head is not complete."""
        if self._buffer:
            data = bytes(self._buffer + data)
            self._buffer = bytearray()
        while True:
            start = bytes(data[: MAX_HEAD + 4])
            end = start.find(b"\r\n\r\n")
            if end < 0:
                if len(start) > MAX_HEAD:
                    raise HttpError(f"response head longer than {MAX_HEAD} bytes")
                self._buffer += data
                return None
            text, data = start[:end], data[end + 4 :]
            known = self._known
            head = known[1] if known is not None and text == known[0] else read_head(text)
            if head is not None:  # not an interim response: the real one follows
                break
        if head.length > self.max_body:
            raise HttpError(f"response body of {head.length} bytes, at most {self.max_body} are read")
        self._known = text, head
        self._head = head
        return data

    def _read_chunks(self) -> HttpResponse | None:
        buffer = self._buffer
        while True:
            end = buffer.find(b"\r\n", self._position, self._position + _MAX_CHUNK_LINE)
            if end < 0:
                if len(buffer) - self._position >= _MAX_CHUNK_LINE:
                    raise HttpError("chunk size line too long")
                break
            digits = bytes(buffer[self._position : end]).partition(b";")[0].strip()
            try:
                if len(digits) > 12 or not digits.isalnum():
                    raise ValueError
                size = int(digits, 16)
            except ValueError:
                raise HttpError(f"bad chunk size {digits[:40]!r}") from None
            start = end + 2
            if size == 0:
                return self._read_trailers(start)
            if self._length + size > self.max_body:
                raise HttpError(f"response body longer than {self.max_body} bytes")
            if len(buffer) < start + size + 2:
                break
            if buffer[start + size : start + size + 2] != b"\r\n":
                raise HttpError("chunk does not end where its size says")
            with memoryview(buffer) as view:
                self._body.append(bytes(view[start : start + size]))
            self._length += size
            self._position = start + size + 2
        return None

    def _read_trailers(self, start: int) -> HttpResponse | None:
        buffer = self._buffer
        position = start
        while (end := buffer.find(b"\r\n", position)) != position:
            if len(buffer) - start > MAX_HEAD:
                raise HttpError(f"trailers longer than {MAX_HEAD} bytes")
            if end < 0:
                return None
            position = end + 2
        if len(buffer) > position + 2:
            raise HttpError("bytes after the response")
        return self._response(b"".join(self._body))

    def _response(self, body: bytes) -> HttpResponse:
        head = self._head
        assert head is not None
        if head.gzip and body:
            body = _gunzip(body, self.max_body)
        self._reset()
        return HttpResponse(head.status, body, head.reusable)


def _gunzip(body: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        plain = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(f"bad gzip body: {error}") from None
    if len(plain) > limit:
        raise HttpError(f"response body longer than {limit} bytes after decompression")
    if not inflate.eof:
        raise HttpError("gzip body ends too early")
    return plain
