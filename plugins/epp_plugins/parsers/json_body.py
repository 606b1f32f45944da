"""Decoding a request body: only the fields a parser names, and an offset in every refusal.

Whatever is not named is still checked to be JSON, but nothing is built for it.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TypeVar

import msgspec

from epp.api import BadRequest
from epp_plugins.parsers.nesting import exceeds_depth

MAX_DEPTH = 1000
"""Levels of nesting; deeper bodies are refused."""

_T = TypeVar("_T")
_OFFSET = re.compile(r" ?\(byte (\d+)\)")
_HALF_PAIR = re.compile(rb'(?<!\\)(?:\\\\)*(\\u[dD][89abAB][0-9a-fA-F]{2})"')
_FILLED_ARRAY = re.compile(rb"\[[ \t\r\n]*+[^\]]")
_PREFIX = "error unmarshaling request bodyMap: "


def decode(
    decoder: msgspec.json.Decoder[_T], body: bytes, kind: str, usual: msgspec.json.Decoder[_T] | None = None
) -> _T:
    """Decode a whole body; `BadRequest` when it is not UTF-8, not JSON, too deep or of another shape.

    `usual` is tried before `decoder`: it may understand more of the body in one go. What it cannot read, it does not
    judge.

    Of duplicate keys the last one wins, as in Go's encoding/json. An escape that spells half a surrogate pair counts
    as malformed: it stands for no character.
    """
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"{_PREFIX}not UTF-8 at byte {error.start}") from None
    offset = exceeds_depth(body, MAX_DEPTH)
    if offset is not None:
        raise BadRequest(f"{_PREFIX}nested deeper than {MAX_DEPTH} levels at byte {offset}")
    if usual is not None:
        try:
            return usual.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            pass
    try:
        try:
            return decoder.decode(body)
        except RecursionError:
            return _with_more_levels(decoder, body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"invalid {kind} request: {error}") from None
    except msgspec.DecodeError as error:
        raise BadRequest(_PREFIX + _positioned(str(error), body)) from None


def _with_more_levels(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """Up to Python 3.11 the decoder's levels count as Python frames, on top of those already there. The depth is known
    to be bounded here, so the limit may make room for it."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 2 * MAX_DEPTH)
    try:
        return decoder.decode(body)
    finally:
        sys.setrecursionlimit(limit)


def _positioned(message: str, body: bytes) -> str:
    """The decoder's message with the offset in the same words everywhere."""
    found = _OFFSET.search(message)
    if found is None:  # the decoder ran off the end, or looked there for the other half of a character
        half = _HALF_PAIR.search(body, max(0, len(body) - 16))
        if half is not None:
            return f"half a utf-16 surrogate pair at byte {half.start(1)}"
        return f"unexpected end of JSON input at byte {len(body)}"
    reason = (message[: found.start()] + message[found.end() :]).removeprefix("JSON is malformed: ")
    offset = int(found.group(1))
    if reason == "trailing characters":  # the one message that counts the offending byte in
        offset -= 1
    return f"{reason} at byte {offset}"


def raw_text(raw: msgspec.Raw) -> str:
    """The JSON text of a field, exactly as the client wrote it."""
    return bytes(raw).decode()


def is_null(raw: msgspec.Raw) -> bool:
    """Whether the field is missing or null."""
    view = memoryview(raw)
    return len(view) == 0 or view[0] == 0x6E


def is_filled_array(raw: msgspec.Raw) -> bool:
    """Whether the field is an array with at least one element."""
    view = memoryview(raw)
    if len(view) < 3 or view[0] != 0x5B:
        return False
    if view[1] > 0x20:  # no blank, as in most bodies
        return view[1] != 0x5D
    return _FILLED_ARRAY.match(view) is not None


def is_filled_string(raw: msgspec.Raw) -> bool:
    """Whether the field is a string with at least one character."""
    view = memoryview(raw)
    return len(view) > 2 and view[0] == 0x22


def count_of(value: Any) -> int | None:
    """A token limit: a number that is whole and not negative; anything else is no limit, as the server will say."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def text_of(value: Any) -> str | None:
    """A string, None for anything else."""
    return value if isinstance(value, str) else None


def salt_of(value: Any, kind: str, field: str = "cache_salt") -> str:
    """A cache salt; refused when it is no string, because ignoring it would share what was to be kept apart."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"invalid {kind} request: {field} must be a string")
    return value
