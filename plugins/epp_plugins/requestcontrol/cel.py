"""A small part of the Common Expression Language, enough for arithmetic over numbers that a server reported.

    expression = condition ["?" expression ":" expression]      ||  &&  ==  !=  <  <=  >  >=  +  -  *  /  %  !  -x
    values: 1, 1.5, true, false, a.b.c (a path below a known variable), has(a.b), int(x), double(x), (...)

Differences from CEL: whole numbers and fractions may be mixed (CEL demands `double(1)`), `/` of two whole numbers
rounds towards zero as in CEL, and there are no strings, lists or maps. Expressions are compiled once, into nested
closures; nothing of Python is reachable from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Value = int | float | bool
Variables = Mapping[str, Any]
Compiled = Callable[[Variables], Value]

MAX_TOKENS = 400
MAX_DEPTH = 64
MAX_DIGITS = 40
_INT64 = 1 << 63

_TOKEN = re.compile(
    r"\s*(?:(?P<float>\d+\.\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)"
    r"|(?P<int>0[xX][0-9a-fA-F]+|\d+)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<op>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:().])"
    r"|(?P<bad>\S))",
    re.ASCII,
)
_COMMENT = re.compile(r"//[^\n]*")


class CelError(ValueError):
    """An expression that cannot be compiled, or values that it cannot be applied to."""


class NotReported(CelError):
    """The expression reads a field that has no value this time; `has(...)` tests for it."""


def compile_expression(text: str, known: Mapping[str, Sequence[str]]) -> Compiled:
    """A function of the variables. `known`: variable -> the paths below it (`prompt_tokens`, `details.cached`).

    Raises CelError with the position of what is wrong.
    """
    parser = _Parser(_COMMENT.sub("", text), known)
    compiled = parser.ternary()
    parser.end()
    return compiled


class _Parser:
    def __init__(self, text: str, known: Mapping[str, Sequence[str]]) -> None:
        self._known = known
        self._tokens: list[tuple[str, str, int]] = []
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or "bad"
            self._tokens.append((kind, match[kind], match.start(kind)))
            if kind == "bad":
                raise CelError(f"unexpected {match[kind]!r} at position {match.start(kind)}")
        if len(self._tokens) > MAX_TOKENS:  # each may be one more call deep when it is evaluated
            raise CelError(f"the expression has {len(self._tokens)} parts, at most {MAX_TOKENS} are allowed")
        self._tokens.append(("end", "the end", len(text)))
        self._at = 0
        self._depth = 0

    def ternary(self) -> Compiled:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CelError(f"the expression is nested deeper than {MAX_DEPTH} levels")
        condition = self._binary(0)
        if self._take("?"):
            yes = self.ternary()
            self._expect(":")
            no = self.ternary()
            chosen = condition
            condition = lambda v: yes(v) if to_bool(chosen(v), "?:") else no(v)  # noqa: E731
        self._depth -= 1
        return condition

    def end(self) -> None:
        kind, text, position = self._tokens[self._at]
        if kind != "end":
            raise CelError(f"unexpected {text!r} at position {position}")

    def _binary(self, level: int) -> Compiled:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while (operator := self._tokens[self._at][1]) in _LEVELS[level] and self._tokens[self._at][0] == "op":
            self._at += 1
            left = _apply(operator, left, self._binary(level + 1))
        return left

    def _unary(self) -> Compiled:
        signs = []
        while self._tokens[self._at][1] in ("!", "-"):
            signs.append(self._tokens[self._at][1])
            self._at += 1
        value = self._primary()
        for sign in reversed(signs):
            value = _negate(sign, value)
        return value

    def _primary(self) -> Compiled:
        kind, text, position = self._tokens[self._at]
        self._at += 1
        if kind == "int":
            if len(text) > MAX_DIGITS:
                raise CelError(f"integer overflow at position {position}")
            return _constant(_in_range(int(text, 16 if text[:2] in ("0x", "0X") else 10)))
        if kind == "float":
            return _constant(float(text))
        if text == "(":
            inner = self.ternary()
            self._expect(")")
            return inner
        if kind == "name":
            if text in ("true", "false"):
                return _constant(text == "true")
            if text in _FUNCTIONS and self._take("("):
                argument = self.ternary()
                self._expect(")")
                return _call(_FUNCTIONS[text], argument)
            if text == "has" and self._take("("):
                _, name, where = self._tokens[self._at]
                self._at += 1
                path = self._path(name, where)
                self._expect(")")
                return lambda v: _look_up(v, path) is not None
            path = self._path(text, position)
            return lambda v: _read(v, path)
        raise CelError(f"unexpected {text!r} at position {position}")

    def _path(self, variable: str, position: int) -> tuple[str, ...]:
        fields = []
        while self._take("."):
            kind, text, where = self._tokens[self._at]
            if kind != "name":
                raise CelError(f"expected a field name at position {where}, found {text!r}")
            self._at += 1
            fields.append(text)
        if variable not in self._known:
            raise CelError(f"unknown name {variable!r} at position {position}: known is {', '.join(self._known)}")
        field = ".".join(fields)
        if field not in self._known[variable]:
            allowed = ", ".join(f"{variable}.{known}" for known in self._known[variable])
            wrong = f"unknown field {variable}.{field}" if field else f"{variable} without a field"
            raise CelError(f"{wrong} at position {position}: there are {allowed}")
        return (variable, *fields)

    def _take(self, operator: str) -> bool:
        if self._tokens[self._at][:2] == ("op", operator):
            self._at += 1
            return True
        return False

    def _expect(self, operator: str) -> None:
        if not self._take(operator):
            _, text, position = self._tokens[self._at]
            raise CelError(f"expected {operator!r} at position {position}, found {text!r}")


_LEVELS = (("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">="), ("+", "-"), ("*", "/", "%"))


def _constant(value: Value) -> Compiled:
    return lambda _: value


def _call(function: Callable[[Value], Value], argument: Compiled) -> Compiled:
    return lambda v: function(argument(v))


def _negate(sign: str, value: Compiled) -> Compiled:
    if sign == "!":
        return lambda v: not to_bool(value(v), "!")
    return lambda v: _in_range(-_number(value(v), "-"))


def _apply(operator: str, left: Compiled, right: Compiled) -> Compiled:
    if operator == "&&":
        return lambda v: to_bool(left(v), "&&") and to_bool(right(v), "&&")
    if operator == "||":
        return lambda v: to_bool(left(v), "||") or to_bool(right(v), "||")
    if operator in ("==", "!="):
        return lambda v: _equal(left(v), right(v)) == (operator == "==")
    function = _ARITHMETIC[operator]
    return lambda v: _in_range(function(_number(left(v), operator), _number(right(v), operator)))


def _equal(left: Value, right: Value) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _divide(left: int | float, right: int | float) -> int | float:
    if right == 0:
        raise CelError("division by zero")
    if isinstance(left, int) and isinstance(right, int):
        quotient = abs(left) // abs(right)
        return quotient if (left < 0) == (right < 0) else -quotient
    return left / right


def _remainder(left: int | float, right: int | float) -> int | float:
    quotient = _divide(left, right)
    return left - right * (quotient if isinstance(quotient, int) else to_int(quotient))


_ARITHMETIC: dict[str, Callable[[int | float, int | float], Value]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": _remainder,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def to_int(value: Value) -> int:
    """A whole number, rounded towards zero. CelError for what does not fit 64 bits, and for true and false."""
    number = _number(value, "int()")
    if not -_INT64 <= number < _INT64:  # NaN compares false
        raise CelError(f"{number} is no 64-bit integer")
    return int(number)


def _to_double(value: Value) -> float:
    return float(_number(value, "double()"))


_FUNCTIONS: dict[str, Callable[[Value], Value]] = {"int": to_int, "double": _to_double}


def _number(value: Value, where: str) -> int | float:
    if isinstance(value, bool):
        raise CelError(f"{where} needs a number, got {str(value).lower()}")
    return value


def to_bool(value: Value, where: str) -> bool:
    """True or false; CelError for a number."""
    if not isinstance(value, bool):
        raise CelError(f"{where} needs true or false, got {value}")
    return value


def _in_range(value: Value) -> Value:
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise CelError("integer overflow")
    return value


def _look_up(variables: Variables, path: Sequence[str]) -> Any:
    value: Any = variables
    for name in path:
        value = value.get(name)
        if value is None:
            return None
    return value


def _read(variables: Variables, path: Sequence[str]) -> Value:
    value: Value | None = _look_up(variables, path)
    if value is None:
        name = ".".join(path)
        raise NotReported(f"{name} was not reported; test for it with has({name})")
    return value
