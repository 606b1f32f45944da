"""gRPC messages out of a stream of bytes: one flag byte, four bytes of length, the message."""

from __future__ import annotations

import zlib
from typing import Final

from epp.transport.status import INTERNAL, RESOURCE_EXHAUSTED

PREFIX: Final = 5


class MessageError(Exception):
    """The call ends with this gRPC status."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class MessageReader:
    """Cuts what arrives in any pieces into messages; made only for streams that need it.

    `held`: bytes kept of an incomplete message.
    """

    __slots__ = ("_buffer", "_gzip", "_limit", "_wanted")

    def __init__(self, limit: int, *, gzip: bool) -> None:
        self._limit = limit
        self._gzip = gzip
        self._buffer = bytearray()
        self._wanted = PREFIX

    @property
    def held(self) -> int:
        """Bytes of a message that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes, start: int, stop: int) -> list[bytes]:
        """The messages that `data[start:stop]` completes. Raises `MessageError`."""
        buffer = self._buffer
        if not buffer and stop - start >= PREFIX:
            # The usual case: cut in place and keep only the rest.
            found: list[bytes] = []
            while stop - start >= PREFIX:
                end = start + PREFIX + self._length(data, start)
                if end > stop:
                    break
                found.append(self._message(data[start], data[start + PREFIX : end]))
                start = end
            if start < stop:
                buffer += data[start:stop]
                self._wanted = PREFIX + self._length(buffer, 0) if len(buffer) >= PREFIX else PREFIX
            return found
        buffer += data[start:stop] if start or stop != len(data) else data
        if len(buffer) < self._wanted:
            return []
        found = []
        start = 0
        while True:
            if len(buffer) - start < PREFIX:
                self._wanted = PREFIX
                break
            end = start + PREFIX + self._length(buffer, start)
            if end > len(buffer):
                self._wanted = end - start
                break
            with memoryview(buffer) as view:
                message = bytes(view[start + PREFIX : end])
            found.append(self._message(buffer[start], message))
            start = end
        if start == len(buffer):
            self._buffer = bytearray()  # give a large buffer back
        else:
            del buffer[:start]
        return found

    def _length(self, data: bytes | bytearray, start: int) -> int:
        length = int.from_bytes(data[start + 1 : start + PREFIX], "big")
        if length > self._limit:
            raise MessageError(RESOURCE_EXHAUSTED, f"a message of {length} bytes, the limit is {self._limit}")
        return length

    def _message(self, flag: int, message: bytes) -> bytes:
        if not flag:
            return message
        if flag != 1 or not self._gzip:
            raise MessageError(INTERNAL, f"compression flag {flag} on a stream without grpc-encoding: gzip")
        return inflate(message, self._limit)


def inflate(message: bytes, limit: int) -> bytes:
    """Undo gzip. Raises `MessageError` when it is damaged or has more than `limit` bytes inside."""
    inflater = zlib.decompressobj(31)
    try:
        inflated = inflater.decompress(message, limit + 1)
    except zlib.error as error:
        raise MessageError(INTERNAL, f"damaged gzip message: {error}") from error
    if len(inflated) > limit:
        raise MessageError(RESOURCE_EXHAUSTED, f"a gzip message of more than {limit} bytes")
    if not inflater.eof or inflater.unused_data:
        raise MessageError(INTERNAL, "damaged gzip message: it is cut off or has bytes behind its end")
    return inflated
