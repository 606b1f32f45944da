"""Replacing one top-level string of a JSON object and leaving every other byte as it was.

Re-encoding would reorder keys, turn big integers into floats and rewrite escapes; the model server must see what the
client wrote. Long strings are skipped by the regular-expression engine, never byte by byte in Python.
"""

from __future__ import annotations

import re

import msgspec

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(rb"[^\s,\]}]++")
_SPACE = re.compile(rb"[ \t\r\n]*+")
_OPENS = b"{["


def replace_member(body: bytes, key: str, value: str, *, present: bool) -> bytes:
    """The object with the value of every top-level member `key` replaced by the string `value`.

    All duplicates are replaced: which of them counts is the reader's choice. Without such a member one is put first.
    `present`: the caller knows that there is one, which often saves the walk. ValueError when it is no object.
    """
    new = msgspec.json.encode(value)
    spans = None
    if present:
        only = _only_literal(body, key)
        spans = None if only is None else [only]
    if spans is None:
        spans = member_spans(body, key)
    if not spans:
        return _inserted(body, key, new)
    pieces: list[bytes] = []
    end = 0
    for start, stop in spans:
        pieces += (body[end:start], new)
        end = stop
    pieces.append(body[end:])
    return b"".join(pieces)


def member_spans(body: bytes, key: str) -> list[tuple[int, int]]:
    """Start and end of the value of each top-level member named `key`, however its name is escaped."""
    spans: list[tuple[int, int]] = []
    literal = b'"' + key.encode() + b'"'
    at = _skip_space(body, 0)
    if body[at : at + 1] != b"{":
        raise ValueError(f"not a JSON object at byte {at}")
    at = _skip_space(body, at + 1)
    if body[at : at + 1] == b"}":
        return spans
    while True:
        name = _STRING.match(body, at)
        if name is None:
            raise ValueError(f"expected a member name at byte {at}")
        at = _skip_space(body, name.end())
        if body[at : at + 1] != b":":
            raise ValueError(f"expected a colon at byte {at}")
        start = _skip_space(body, at + 1)
        stop = end_of_value(body, start)
        spelled = name.group()
        if spelled == literal or (b"\\" in spelled and msgspec.json.decode(spelled) == key):
            spans.append((start, stop))
        at = _skip_space(body, stop)
        following = body[at : at + 1]
        if following == b"}":
            return spans
        if following != b",":
            raise ValueError(f"expected a comma or the end of the object at byte {at}")
        at = _skip_space(body, at + 1)


def end_of_value(body: bytes, start: int) -> int:
    """Offset just behind the JSON value that begins at `start`; ValueError when it does not end."""
    if start < len(body) and body[start] in _OPENS:
        depth = 0
        for token in _STRING_OR_BRACKET.finditer(body, start):
            byte = body[token.start()]
            if byte == 0x22:
                continue
            depth += 1 if byte in _OPENS else -1
            if depth == 0:
                return token.end()
    else:
        value = _STRING.match(body, start) or _SCALAR.match(body, start)
        if value is not None:
            return value.end()
    raise ValueError(f"the value at byte {start} does not end")


def _only_literal(body: bytes, key: str) -> tuple[int, int] | None:
    r"""The span of the member's value when its name can stand in one place only.

    A top-level member exists, no name can hide its letters in escapes (`\u006d` for an m), and the quoted name occurs
    once: then that is the member. A quoted name inside a string would have an escaped quote, which does not match.
    """
    literal = b'"' + key.encode() + b'"'
    found = body.find(literal)
    if found < 0 or body.find(literal, found + 1) >= 0:
        return None
    if any(escape in body for escape in {b"\\u00%x" % (ord(letter) >> 4) for letter in key}):
        return None
    at = _skip_space(body, found + len(literal))
    if body[at : at + 1] != b":":
        return None
    start = _skip_space(body, at + 1)
    return start, end_of_value(body, start)


def _inserted(body: bytes, key: str, value: bytes) -> bytes:
    brace = body.index(b"{") + 1
    rest = _skip_space(body, brace)
    comma = b"" if body[rest : rest + 1] == b"}" else b","
    return b"".join((body[:brace], msgspec.json.encode(key), b":", value, comma, body[brace:]))


def _skip_space(body: bytes, at: int) -> int:
    space = _SPACE.match(body, at)
    return at if space is None else space.end()
