from __future__ import annotations

import re
import sys

import msgspec
import pytest

from epp.api import BadRequest
from epp_plugins.parsers.json_body import (
    count_of,
    decode,
    is_filled_array,
    is_filled_string,
    is_null,
    raw_text,
    salt_of,
)


class _Fields(msgspec.Struct):
    model: object = None
    text: str = ""
    content: msgspec.Raw = msgspec.Raw()


_DECODER = msgspec.json.Decoder(_Fields)


def _nested(depth: int) -> bytes:
    return b'{"content":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "unexpected end of JSON input at byte 0"),
        (b'{"model":', "unexpected end of JSON input at byte 9"),
        (b'{"a":{"b":1,"b":}}', "invalid character at byte 16"),
        (b'{"content":[01]}', "invalid number at byte 13"),
        (b'{"a":1}x', "trailing characters at byte 7"),
        (b'{"other":"\x01"}', "invalid character at byte 10"),
        (b'\xef\xbb\xbf{"model":"a"}', "invalid character at byte 0"),
        (b'{"other":"caf\xe9"}', "not UTF-8 at byte 13"),
        (b'{"content":"\xed\xa0\x80"}', "not UTF-8 at byte 12"),
        (b'{"\xff":1}', "not UTF-8 at byte 2"),
        (b'{"text":"\\ud83d"}', "half a utf-16 surrogate pair at byte 9"),
        (b'{"text":"\\\\\\ud83d"}', "half a utf-16 surrogate pair at byte 11"),
        (b'{"text":"\\\\ud83d', "unexpected end of JSON input at byte 16"),
        (b'{"text":"\\ud83', "unexpected end of JSON input at byte 14"),
    ],
)
def test_refusals_say_where(body: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(f"error unmarshaling request bodyMap: {reason}")):
        decode(_DECODER, body, "test")


@pytest.mark.parametrize("body", [b"[1]", b"null", b'"text"', b"17"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="invalid test request: Expected `object`"):
        decode(_DECODER, body, "test")


def test_half_a_surrogate_pair_in_a_field_that_is_read() -> None:
    with pytest.raises(BadRequest, match="error unmarshaling request bodyMap"):
        decode(_DECODER, b'{"text":"\\ud83d, and on it goes"}', "test")


def test_the_last_of_duplicate_keys_wins() -> None:
    assert decode(_DECODER, b'{"model":"a","model":"b"}', "test").model == "b"


@pytest.mark.parametrize("depth", [990, 1000])
def test_a_thousand_levels_pass_whatever_the_recursion_limit(depth: int) -> None:
    before = sys.getrecursionlimit()
    assert len(bytes(decode(_DECODER, _nested(depth), "test").content)) == 2 * depth - 2
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize("depth", [1001, 2000, 100_000])
def test_deeper_bodies_are_refused_at_the_bracket(depth: int) -> None:
    with pytest.raises(BadRequest, match=r"nested deeper than 1000 levels at byte 1010$"):
        decode(_DECODER, _nested(depth), "test")


def test_unclosed_nesting_is_refused_too() -> None:
    with pytest.raises(BadRequest, match="nested deeper than 1000 levels"):
        decode(_DECODER, b"[" * 5_000_000, "test")


def test_predicates_over_raw_fields() -> None:
    def raw(text: bytes) -> msgspec.Raw:
        return msgspec.Raw(text)

    assert [is_filled_array(raw(t)) for t in (b"[1]", b"[ \n{}]", b"[]", b"[ \t\r\n]", b"{}", b"")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert [is_filled_string(raw(t)) for t in (b'"a"', b'""', b"[1]", b"")] == [True, False, False, False]
    assert [is_null(raw(t)) for t in (b"null", b"", b'"n"', b"0")] == [True, True, False, False]
    assert raw_text(raw('{"é": 1 }'.encode())) == '{"é": 1 }'


@pytest.mark.parametrize(
    ("value", "count"),
    [(5, 5), (0, 0), (5.0, 5), (5.5, None), (-1, None), (True, None), ("5", None), (None, None), (10**30, 10**30)],
)
def test_token_limits(value: object, count: int | None) -> None:
    assert count_of(value) == count


def test_a_salt_that_is_no_string_is_refused() -> None:
    assert (salt_of(None, "test"), salt_of("s", "test")) == ("", "s")
    with pytest.raises(BadRequest, match="invalid test request: cache_salt must be a string"):
        salt_of(7, "test")
