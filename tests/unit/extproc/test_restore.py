"""The model's name on its way back."""

from __future__ import annotations

import json

import pytest

from epp.extproc.restore import ModelRestorer


def restored(chunks: list[bytes], served: str = "served-v2", asked: str = "asked") -> bytes:
    restorer = ModelRestorer(served, asked)
    out = [restorer.feed(chunk, last=False) for chunk in chunks]
    return b"".join([*out, restorer.feed(b"", last=True)])


@pytest.mark.parametrize("space", [b"", b" "])
def test_both_spellings_wherever_they_are_cut(space: bytes) -> None:
    body = b'{"id":"1","model":' + space + b'"served-v2","x":"' + b'model","model":' + space + b'"served-v2"}'
    expected = body.replace(b'"served-v2"', b'"asked"')
    for first in range(len(body)):
        for second in range(first, len(body), 5):
            assert restored([body[:first], body[first:second], body[second:]]) == expected
    assert restored([bytes((byte,)) for byte in body]) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"served-v22"}',
        b'{"model":  "served-v2"}',
        b'{"text":"\\"model\\":\\"served-v2\\""}',
        b'{"models":"served-v2","model":"other"}',
        b"",
        b'"mod',
    ],
)
def test_everything_else_passes(body: bytes) -> None:
    assert restored([body]) == body
    assert restored([bytes((byte,)) for byte in body]) == body


def test_only_the_suffix_that_may_match_is_held_back() -> None:
    restorer = ModelRestorer("served-v2", "asked")
    assert restorer.feed(b'data: {"id":"1","mode', last=False) == b'data: {"id":"1",'
    assert restorer.held == b'"mode'
    assert restorer.feed(b"rn", last=False) == b'"modern'
    assert restorer.feed(b'data: {"model":"served-v2"}\n\n', last=False) == b'data: {"model":"asked"}\n\n'
    assert restorer.held == b""


def test_names_are_compared_as_json_writes_them() -> None:
    served, asked = 'mödel"x', "grün\\"
    for ascii_only in (True, False):
        body = json.dumps({"model": served}, ensure_ascii=ascii_only).encode()
        expected = json.dumps({"model": asked}, ensure_ascii=ascii_only).encode()
        assert restored([body], served, asked) == expected


def test_a_lone_surrogate_has_only_an_escaped_form() -> None:
    assert restored([b'{"model":"\\ud800"}'], "\ud800", "asked") == b'{"model":"asked"}'


def test_names_are_no_patterns() -> None:
    assert restored([b'{"model":"abc"}{"model":"a.c"}'], "a.c", "\\1") == b'{"model":"abc"}{"model":"\\\\1"}'
