"""The expressions: values, precedence, errors with positions, and what they may not do."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from epp_plugins.requestcontrol.cel import MAX_DEPTH, MAX_TOKENS, CelError, NotReported, compile_expression, to_int

KNOWN = {"u": ("a", "b", "c", "d", "d.e")}
VARIABLES: dict[str, Any] = {"u": {"a": 7, "b": 2.0, "d": {"e": 5}}}


def evaluate(text: str) -> Any:
    return compile_expression(text, KNOWN)(VARIABLES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 2 - 3", 5),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("7 / -2", -3),
        ("-7 % 3", -1),
        ("7 % 2.5", 2.0),
        ("7 / 2.0", 3.5),
        ("0x10 + .5 + 1e1 + 2.", 28.5),
        ("--3", 3),
        ("!!true", True),
        ("u.a + u.b", 9.0),
        ("u.d.e", 5),
        ("u . d . e", 5),
        ("1 < 2 && 2 <= 2 && 3 > 2 && 3 >= 3", True),
        ("1 == 1.0 && 1 != 2", True),
        ("true == 1", False),
        ("false || true && false", False),
        ("true || u.c > 1", True),
        ("false && u.c > 1", False),
        ("has(u.a)", True),
        ("has(u.c)", False),
        ("has(u.d.e)", True),
        ("has(u.c) ? u.c : 0", 0),
        ("true ? 1 : false ? 2 : 3", 1),
        ("false ? 1 : false ? 2 : 3", 3),
        ("int(3.9) + int(-3.9)", 0),
        ("double(7) / 2", 3.5),
        ("// a comment\n1 +\n 1 // and another", 2),
    ],
)
def test_values(text: str, value: Any) -> None:
    result = evaluate(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unexpected 'the end' at position 0"),
        ("1 +", "unexpected 'the end' at position 3"),
        ("1 2", "unexpected '2' at position 2"),
        ("(1", r"expected '\)' at position 2"),
        ("true ? 1", "expected ':' at position 8"),
        ("x + 1", "unknown name 'x' at position 0: known is u"),
        ("1 + u.z", r"unknown field u\.z at position 4: there are u\.a, u\.b"),
        ("u", r"u without a field at position 0: there are u\.a"),
        ("u.1", "u without a field"),
        ("u.+", r"expected a field name at position 2, found '\+'"),
        ("has(x.y)", "unknown name 'x'"),
        ("has(1)", "unknown name '1' at position 4"),
        ("size(u.a)", "unknown name 'size'"),
        ("has", "unknown name 'has'"),
        ("u.__class__", r"unknown field u\.__class__"),
        ('"text"', "unexpected '\"' at position 0"),
        ("1 = 1", "unexpected '=' at position 2"),
        ("99999999999999999999", "integer overflow"),
        ("1 + " + "9" * 5000, "integer overflow at position 4"),
        ("1 + \u0663", "unexpected '\u0663' at position 4"),
        ("(" * (MAX_DEPTH + 1), "nested deeper than"),
        ("1" + "+1" * MAX_TOKENS, "parts, at most"),
        ("-" * MAX_TOKENS + "1", "parts, at most"),
    ],
)
def test_what_does_not_compile(text: str, message: str) -> None:
    with pytest.raises(CelError, match=message):
        compile_expression(text, KNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "division by zero"),
        ("1 % 0.0", "division by zero"),
        ("1e308 * 10 % 3", "no 64-bit integer"),
        ("9223372036854775807 + 1", "integer overflow"),
        ("-9223372036854775807 - 2", "integer overflow"),
        ("true + 1", r"\+ needs a number, got true"),
        ("-true", "- needs a number, got true"),
        ("1 && true", "&& needs true or false, got 1"),
        ("!1", "! needs true or false, got 1"),
        ("1 ? 2 : 3", r"\?: needs true or false, got 1"),
        ("int(true)", r"int\(\) needs a number"),
        ("double(false)", r"double\(\) needs a number"),
        ("int(1e300)", "no 64-bit integer"),
    ],
)
def test_what_cannot_be_computed(text: str, message: str) -> None:
    compiled = compile_expression(text, KNOWN)
    with pytest.raises(CelError, match=message):
        compiled(VARIABLES)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(NotReported, match=r"u\.c was not reported; test for it with has\(u\.c\)"):
        evaluate("u.c + 1")


def test_to_int() -> None:
    assert to_int(2.9) == 2
    for value in (float("nan"), float("inf"), 2.0**63):
        with pytest.raises(CelError, match="64-bit"):
            to_int(value)


@given(st.text(alphabet="u.abd has()int+-*/%<>=!&|?: 019.e\n", max_size=60) | st.text(max_size=20))
@example("1" + "+1" * 150)
@example("1" * 5000)
def test_only_cel_errors_come_out(text: str) -> None:
    with contextlib.suppress(CelError):
        assert isinstance(evaluate(text), int | float)
