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


class ResponseReader:
    """`feed` bytes until it returns the response; then it is ready for the next one on the same connection.

    `max_body` bounds the body in bytes, after decompression too.
    """

    __slots__ = ("_body", "_buffer", "_gzip", "_length", "_mode", "_position", "_reusable", "_status", "max_body")

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._mode = "head"
        self._length = 0
        self._body = bytearray()
        self._status = 0
        self._gzip = False
        self._reusable = False

    @property
    def started(self) -> bool:
        """Whether any byte of a response has arrived."""
        return self._mode != "head" or bool(self._buffer)

    def feed(self, data: bytes | memoryview) -> HttpResponse | None:
        """The response when these bytes complete it. Raises `HttpError` when they cannot belong to one."""
        self._buffer += data
        while self._mode == "head":
            end = self._buffer.find(b"\r\n\r\n", max(0, self._position - 3))
            if end < 0:
                self._position = len(self._buffer)
                if self._position > MAX_HEAD:
                    raise HttpError(f"response head longer than {MAX_HEAD} bytes")
                return None
            if end > MAX_HEAD:
                raise HttpError(f"response head longer than {MAX_HEAD} bytes")
            head = bytes(self._buffer[:end])
            self._position = end + 4
            self._read_head(head)
            if self._mode == "head":  # an interim response: the real one follows
                del self._buffer[: self._position]
                self._position = 0
        if self._mode == "chunked":
            return self._read_chunks()
        available = len(self._buffer) - self._position
        if self._mode == "length":
            if available < self._length:
                return None
            return self._finish(self._position, self._position + self._length)
        if available > self.max_body:
            raise HttpError(f"response body longer than {self.max_body} bytes")
        return None

    def eof(self) -> HttpResponse:
        """The connection ended: the response if its body lasts until then, else `HttpError`."""
        if self._mode == "eof":
            return self._finish(self._position, len(self._buffer))
        if not self.started:
            raise HttpError("connection closed before a response")
        raise HttpError("connection closed in the middle of a response")

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        version, _, rest = lines[0].partition(b" ")
        code = rest[:3]
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit() or len(code) != 3 or rest[3:4].strip():
            raise HttpError(f"not an HTTP/1 response: {lines[0][:80]!r}")
        self._status = int(code)
        if 100 <= self._status < 200:
            if self._status == 101:
                raise HttpError("unexpected switch of protocols")
            return
        length: int | None = None
        chunked = False
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
                self._gzip = value == b"gzip"
            elif name == b"connection":
                options = {option.strip() for option in value.split(b",")}
                keep_alive = (keep_alive or b"keep-alive" in options) and b"close" not in options
        self._reusable = keep_alive and not (chunked and length is not None)
        if self._status in _NO_BODY:
            self._mode, self._length = "length", 0
        elif chunked:
            self._mode = "chunked"
        elif length is not None:
            if length > self.max_body:
                raise HttpError(f"response body of {length} bytes, at most {self.max_body} are read")
            self._mode, self._length = "length", length
        else:
            self._mode, self._reusable = "eof", False

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
            if len(self._body) + size > self.max_body:
                raise HttpError(f"response body longer than {self.max_body} bytes")
            if len(buffer) < start + size + 2:
                break
            if buffer[start + size : start + size + 2] != b"\r\n":
                raise HttpError("chunk does not end where its size says")
            self._body += memoryview(buffer)[start : start + size]
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
        return self._response(bytes(self._body))

    def _finish(self, start: int, end: int) -> HttpResponse:
        if len(self._buffer) > end:
            raise HttpError("bytes after the response")
        with memoryview(self._buffer) as view:
            return self._response(bytes(view[start:end]))

    def _response(self, body: bytes) -> HttpResponse:
        if self._gzip and body:
            body = _gunzip(body, self.max_body)
        response = HttpResponse(self._status, body, self._reusable)
        self._reset()
        return response


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
