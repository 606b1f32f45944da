from __future__ import annotations

import json

import pytest

from epp_plugins.parsers.splice import end_of_value, member_spans, replace_member


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (b' {\n "model" :\t"a" , "b":1e400}\n', b' {\n "model" :\t"new" , "b":1e400}\n'),
        (
            b'{"z":12345678901234567890,"model":"a","a":"\\u00e9"}',
            b'{"z":12345678901234567890,"model":"new","a":"\\u00e9"}',
        ),
        (b'{"model":"a","x":{"model":"b"},"model":"c"}', b'{"model":"new","x":{"model":"b"},"model":"new"}'),
        (b'{"mod\\u0065l":"a","x":["model"]}', b'{"mod\\u0065l":"new","x":["model"]}'),
        (b'{"x":"say \\"model\\":","model":"a"}', b'{"x":"say \\"model\\":","model":"new"}'),
        (b'{"x":"model","model":"a\\"b"}', b'{"x":"model","model":"new"}'),
    ],
)
def test_only_the_value_changes(body: bytes, expected: bytes, present: bool) -> None:
    assert replace_member(body, "model", "new", present=present) == expected


@pytest.mark.parametrize("value", [b"null", b"17", b"-1.5e3", b"true", b'{"a":["]"]}', b"[1,[2,{}]]"])
def test_values_of_any_type_are_replaced(value: bytes) -> None:
    assert replace_member(b'{"model":' + value + b',"b":1}', "model", "x", present=False) == b'{"model":"x","b":1}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b"{}", b'{"model":"x"}'), (b" { } ", b' {"model":"x" } '), (b'{ "a":1}', b'{"model":"x", "a":1}')],
)
def test_a_missing_member_is_put_first(body: bytes, expected: bytes) -> None:
    assert replace_member(body, "model", "x", present=False) == expected


def test_names_are_encoded() -> None:
    name = 'a"b\\c\nü'
    assert json.loads(replace_member(b'{"model":"a"}', "model", name, present=True)) == {"model": name}


def test_the_same_name_deeper_down_stays() -> None:
    body = b'{"metadata":{"model":"inner"},"messages":[{"model":"m"}],"model":"outer"}'
    assert replace_member(body, "model", "x", present=True) == body.replace(b'"outer"', b'"x"')


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":"x', b'{"a":[1,2', b'{"a":1 "b":2}', b"{1:2}"]
)
def test_what_is_no_object_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="byte"):
        member_spans(body, "model")


def test_end_of_value() -> None:
    assert end_of_value(b'{"a":"}"} rest', 0) == 9
    assert end_of_value(b"[1,[2]],", 0) == 7
    assert end_of_value(b"12,", 0) == 2
    with pytest.raises(ValueError, match="does not end"):
        end_of_value(b"{", 0)
