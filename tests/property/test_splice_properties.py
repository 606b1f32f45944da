"""Replacing the model changes its value and not one byte besides."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from epp_plugins.parsers.splice import end_of_value, member_spans, replace_member

_quick = settings(deadline=None)
_text = st.text(st.characters(codec="utf-8"), max_size=12)
_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
    | st.sampled_from(["model", '"model"', "\\", '\\"', "]}", '"model":"x"']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.just("model") | _text, inner, max_size=4),
    max_leaves=10,
)
_space = st.text(" \t\r\n", max_size=3)


@st.composite
def _objects(draw: st.DrawFn) -> tuple[str, int]:
    """A JSON object as text, with odd spacing, escaped names and duplicates; and how many models it names."""
    members = draw(st.lists(st.tuples(st.just("model") | _text, _value), max_size=6))
    pieces = []
    for name, value in members:
        spelled = json.dumps(name, ensure_ascii=draw(st.booleans()))
        if draw(st.integers(0, 3)) == 0:
            spelled = '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in name) + '"'
        space = [draw(_space) for _ in range(4)]
        encoded = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.just(1)))
        pieces.append(f"{space[0]}{spelled}{space[1]}:{space[2]}{encoded}{space[3]}")
    text = draw(_space) + "{" + (",".join(pieces) or draw(_space)) + "}" + draw(_space)
    return text, sum(name == "model" for name, _ in members)


def _pairs(text: str | bytes) -> list[tuple[str, Any]]:
    """Top-level members in order, duplicates kept."""
    found: list[list[tuple[str, Any]]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(pairs)
        return dict(pairs)

    json.loads(text, object_pairs_hook=keep)
    return found[-1]


@_quick
@given(_objects(), _text)
def test_only_model_values_change(drawn: tuple[str, int], model: str) -> None:
    text, count = drawn
    body = text.encode()
    spliced = replace_member(body, "model", model, present=count > 0)
    before, after = _pairs(text), _pairs(spliced)
    expected = [(name, model if name == "model" else value) for name, value in before]
    if count == 0:
        expected.insert(0, ("model", model))
    assert after == expected
    assert spliced == replace_member(body, "model", model, present=False)


@_quick
@given(_objects(), _text)
def test_bytes_outside_the_values_are_identical(drawn: tuple[str, int], model: str) -> None:
    body = drawn[0].encode()
    spliced = replace_member(body, "model", model, present=False)
    old, new = member_spans(body, "model"), member_spans(spliced, "model")
    if not old:
        return
    assert _outside(body, old) == _outside(spliced, new)
    assert all(json.loads(spliced[start:stop]) == model for start, stop in new)


def _outside(body: bytes, spans: list[tuple[int, int]]) -> list[bytes]:
    edges = [0, *(edge for span in spans for edge in span), len(body)]
    return [body[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2)]


@_quick
@given(_value, st.binary(max_size=5))
def test_a_value_ends_where_it_ends(value: Any, rest: bytes) -> None:
    encoded = json.dumps(value).encode()
    assert end_of_value(encoded + b"," + rest, 0) == len(encoded)
