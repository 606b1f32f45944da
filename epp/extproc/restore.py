"""Giving the model back the name the client asked for, in an answer that passes by in chunks."""

from __future__ import annotations

import json
import re

import msgspec


class ModelRestorer:
    """Replaces `"model":"<served>"` (or with one space) in a byte stream, wherever the chunks are cut.

    Of a chunk only the shortest suffix that may be the beginning of a match is held back until the next one. Names
    are compared as JSON writes them, with non-ASCII characters as UTF-8 or as escapes.
    """

    __slots__ = ("_longest", "_pattern", "_replacements", "_targets", "held")

    def __init__(self, served: str, asked: str) -> None:
        self._replacements = {
            _utf8(served): _utf8(asked),
            json.dumps(served).encode(): json.dumps(asked).encode(),
        }
        self._targets = tuple(b'"model":' + space + name for name in self._replacements for space in (b"", b" "))
        self._longest = max(map(len, self._targets))
        names = b"|".join(re.escape(name) for name in self._replacements)
        self._pattern = re.compile(b'("model": ?)(' + names + b")")
        self.held = b""

    def feed(self, chunk: bytes, *, last: bool) -> bytes:
        """What may travel on now; after the `last` chunk nothing is held back."""
        data = self.held + chunk if self.held else chunk
        pieces: list[bytes] = []
        done = 0
        for match in self._pattern.finditer(data):
            pieces += (data[done : match.start()], match[1], self._replacements[match[2]])
            done = match.end()
        stop = len(data) if last else self._beginning(data, done)
        self.held = data[stop:]
        if not pieces and stop == len(data):
            return data
        pieces.append(data[done:stop])
        return b"".join(pieces)

    def _beginning(self, data: bytes, done: int) -> int:
        """Where the suffix begins that may become a match; the length when there is none."""
        at = data.find(b'"', max(done, len(data) - self._longest + 1))
        while at >= 0:
            suffix = data[at:]
            if any(target.startswith(suffix) for target in self._targets):
                return at
            at = data.find(b'"', at + 1)
        return len(data)


def _utf8(name: str) -> bytes:
    try:
        return msgspec.json.encode(name)
    except UnicodeEncodeError:  # a lone surrogate has only the escaped form
        return json.dumps(name).encode()
