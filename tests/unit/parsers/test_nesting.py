from __future__ import annotations

import pytest

from epp_plugins.parsers.nesting import exceeds_depth


def test_short_text_cannot_be_deep() -> None:
    assert exceeds_depth(b"[" * 1000, 1000) is None


@pytest.mark.parametrize(("opening", "offset"), [(b"[", 1000), (b'{"a":', 5000), (b"[{},", 4 * 999 + 1)])
def test_offset_of_the_first_bracket_that_is_too_deep(opening: bytes, offset: int) -> None:
    assert exceeds_depth(opening * 1001, 1000) == offset


def test_brackets_in_strings_do_not_count() -> None:
    assert exceeds_depth(b'["' + b"[{" * 20_000 + b'"]', 1000) is None


def test_closing_brackets_in_strings_hide_nothing() -> None:
    body = b'["]]]]",' * 1500
    assert exceeds_depth(body, 1000) == 1000 * len(b'["]]]]",')


def test_escaped_quotes_do_not_end_a_string() -> None:
    assert exceeds_depth(b'["' + b'\\"[' * 10_000 + b'"]', 1000) is None


def test_escaped_backslash_ends_before_its_quote() -> None:
    body = b'["\\\\"' + b",[" * 2000
    assert exceeds_depth(body, 1000) == len(b'["\\\\"') + 2 * 999 + 1


def test_long_runs_of_backslashes() -> None:
    assert exceeds_depth(b'["' + b"\\" * 40_001 + b'"' + b"[" * 2000 + b'"]', 1000) is None
    body = b'["' + b"\\" * 40_000 + b'"' + b"[" * 2000
    assert exceeds_depth(body, 1000) == 2 + 40_000 + 1 + 999


@pytest.mark.parametrize("shift", range(-3, 4))
def test_a_string_across_chunks(shift: int) -> None:
    filler = (1 << 20) + shift - len(b'["\\"')
    body = b'["' + b"x" * filler + b'\\"[' + b'\\"' + b"[" * 5000 + b'"]'
    assert exceeds_depth(body, 1000) is None
    deep = b'["' + b"x" * filler + b'\\\\"' + b",[" * 5000
    assert exceeds_depth(deep, 1000) == 2 + filler + 3 + 2 * 999 + 1


def test_depth_counts_over_chunks() -> None:
    body = b"[" * 900 + b" " * (3 << 20) + b"[" * 101
    assert exceeds_depth(body, 1000) == 900 + (3 << 20) + 100


def test_many_siblings_are_not_deep() -> None:
    assert exceeds_depth(b"[" + b"[],{}," * 50_000 + b"0]", 1000) is None
