"""Finding the token counts in an answer that passes by, without decoding what has none.

Servers report usage in one of the last events of a stream, or at the end of a JSON answer. A chunk is searched for
the name of the member that holds it, and only a line that has one is handed on to the parser.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

# In the APIs of OpenAI and Anthropic, and in SGLang's own, where every event has it. In text, quotes are escaped.
_USAGE: Final = b'"usage"'
_META_INFO: Final = b'"meta_info"'
_NULLS: Final = (b":null", b": null")


class UsageReader(Protocol):
    """Who understands usage: a flight."""

    def stream_usage(self, event: bytes) -> None:
        """The JSON of an event that may carry usage."""

    def body_usage(self, body: bytes) -> None:
        """A whole JSON answer, or the tail of a long one."""


class UsageTap(Protocol):
    """Sees the chunks of an answer as they pass."""

    idle: bool
    """Whether a chunk that ends with a newline and does not have `marker` in it needs no `feed`."""

    marker: bytes
    """The name of the member that holds usage."""

    def feed(self, chunk: bytes, reader: UsageReader) -> None:
        """The next piece of the answer."""

    def finish(self, reader: UsageReader) -> None:
        """The answer is complete."""


class EventUsage:
    """Usage in server-sent events, also when an event is split over chunks. Keeps at most `limit` bytes of one line.

    All engines write an event's JSON on one `data:` line, so lines are what is put together.
    """

    __slots__ = ("_limit", "_parts", "_seen", "_size", "_skipping", "idle", "marker")

    def __init__(self, limit: int) -> None:
        self.idle = False
        self.marker = _USAGE
        self._seen = False
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, chunk: bytes, reader: UsageReader) -> None:
        end = chunk.rfind(b"\n") + 1
        if not end:
            self._keep(chunk)
            return
        if self._skipping:
            complete = chunk[chunk.find(b"\n") + 1 : end]
            self._skipping = False
        elif self._parts:
            self._parts.append(chunk[:end])
            complete = b"".join(self._parts)
        else:
            complete = chunk[:end]
        self._parts = []
        self._size = 0
        if not self._seen and b"data:" in complete:
            self._seen = True
            if _META_INFO in complete:
                self.marker = _META_INFO
        self.idle = self._seen
        if end < len(chunk):
            self._keep(chunk[end:])
        _report(complete, self.marker, reader)

    def finish(self, reader: UsageReader) -> None:
        if self._parts:
            _report(b"".join(self._parts), self.marker, reader)
            self._parts = []

    def _keep(self, part: bytes) -> None:
        self.idle = False
        if self._skipping:
            return
        self._parts.append(part)
        self._size += len(part)
        if self._size > self._limit:  # no engine writes such a line; what is in it is lost, the bytes pass all the same
            self._parts = []
            self._size = 0
            self._skipping = True


class AnswerUsage:
    """Usage in an answer that is one JSON document: the whole of it up to `limit` bytes, else its last quarter of that.

    The tail is enough for the parsers: usage stands behind the choices, the embeddings, the images.
    """

    __slots__ = ("_limit", "_parts", "_size", "idle", "marker")

    def __init__(self, limit: int) -> None:
        self.idle = False
        self.marker = _USAGE
        self._limit = limit
        self._parts: deque[bytes] = deque()
        self._size = 0

    def feed(self, chunk: bytes, reader: UsageReader) -> None:
        self._parts.append(chunk)
        self._size += len(chunk)
        if self._size > self._limit:
            whole = b"".join(self._parts)
            tail = whole[-(self._limit // 4) :]
            self._parts = deque((tail,))
            self._size = len(tail)

    def finish(self, reader: UsageReader) -> None:
        if self._parts:
            body = b"".join(self._parts)
            self._parts.clear()
            reader.body_usage(body)


def _report(lines: bytes, marker: bytes, reader: UsageReader) -> None:
    """Hand on each `data:` line that has the marker with something behind it but null."""
    at = lines.find(marker)
    while at >= 0:
        after = at + len(marker)
        if not lines.startswith(_NULLS, after):
            start = lines.rfind(b"\n", 0, at) + 1
            after = lines.find(b"\n", after)
            if after < 0:
                after = len(lines)
            if lines.startswith(b"data:", start):
                reader.stream_usage(lines[start + 5 : after].strip())
        at = lines.find(marker, after)
