"""Errors of typed decoding say which path, which line and what was meant."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from epp.config.decode import decode
from epp.config.document import read
from epp.config.duration import Duration
from epp.config.errors import LocatedError
from epp.config.quantity import Quantity


class Inner(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    max_value: Annotated[int, msgspec.Meta(ge=1)] = 1
    label: str = ""


class Outer(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    items: list[Inner] = []
    by_name: dict[str, Inner] = {}
    maybe: Inner | None = None
    size: Quantity = Quantity(0)
    wait: Duration = Duration(0)
    numbers: dict[str, int] = {}

    def __post_init__(self) -> None:
        if self.size == 7:
            raise ValueError("size must not be 7")


class Needs(msgspec.Struct, forbid_unknown_fields=True):
    path: str


class Strange(msgspec.Struct):
    what: complex = 0j


def outer(text: str) -> Any:
    document = read(text, "f.yaml")
    return decode(document.value.get("p", {}), Outer, document, "p")


def test_typed_values() -> None:
    made = outer("p:\n  items: [{maxValue: 3}]\n  byName: {a: {label: x}}\n  maybe: {}\n  size: 1Ki\n  wait: 5ms")
    assert made.items[0].max_value == 3
    assert made.by_name["a"].label == "x"
    assert made.maybe == Inner()
    assert (made.size, made.wait) == (1024, 0.005)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "p:\n  items:\n  - maxVal: 3",
            "f.yaml:3: p.items[0].maxVal: unknown field `maxVal` (did you mean `maxValue`?)",
        ),
        ("p:\n  item: []", "f.yaml:2: p.item: unknown field `item` (did you mean `items`?)"),
        ("p:\n  maybe:\n    lable: x", "f.yaml:3: p.maybe.lable: unknown field `lable` (did you mean `label`?)"),
        ("p:\n  items:\n  - {}\n  - maxValue: 0", "f.yaml:4: p.items[1].maxValue: expected `int` >= 1"),
        ("p:\n  items: [{maxValue: x}]", "f.yaml:2: p.items[0].maxValue: expected `int`, got `str`"),
        ("p:\n  byName:\n    a: {}\n    b: {maxValue: 0}", "f.yaml:4: p.byName.b.maxValue: expected `int` >= 1"),
        ("p:\n  byName:\n    b: {maxValu: 0}", "f.yaml:3: p.byName.b.maxValu: unknown field `maxValu` (did you mean"),
        ("p:\n  numbers:\n    a: 1\n    b: x", "f.yaml:4: p.numbers.b: expected `int`, got `str`"),
        ("p:\n  size: 10Gx", "f.yaml:2: p.size: expected a quantity"),
        ("p:\n  wait: 60", "f.yaml:2: p.wait: expected a duration"),
        ("p:\n  size: 7", "f.yaml:1: p: size must not be 7"),
        ("p: []", "f.yaml:1: p: expected `object`, got `array`"),
    ],
)
def test_errors_have_a_place(text: str, said: str) -> None:
    with pytest.raises(LocatedError) as error:
        outer(text)
    assert str(error.value).startswith(said)


def test_a_missing_field_is_named() -> None:
    document = read("p:\n  q: {}")
    with pytest.raises(LocatedError, match=r"p\.q: `path` is missing \(add `path: \.\.\.`\)"):
        decode({}, Needs, document, "p.q")


def test_no_fields_at_all() -> None:
    class Nothing(msgspec.Struct, forbid_unknown_fields=True):
        pass

    with pytest.raises(LocatedError, match="nothing to set here"):
        decode({"a": 1}, Nothing, read("p: {a: 1}"), "p")


def test_former_names() -> None:
    document = read("p: {old: x}")
    assert decode({"old": "x"}, Needs, document, "p", aliases={"old": "path"}).path == "x"
    with pytest.raises(LocatedError, match="former name of `path`"):
        decode({"old": "x", "path": "y"}, Needs, document, "p", aliases={"old": "path"})


def test_a_type_without_parse_is_the_plugins_mistake() -> None:
    with pytest.raises(LocatedError, match="give the type a `parse` classmethod"):
        decode({"what": "1j"}, Strange, read("p: {what: 1j}"), "p")


class Percent(float):
    @classmethod
    def parse(cls, value: object) -> Percent:
        return cls(float(str(value).removesuffix("%")) / 100)


class WithPercent(msgspec.Struct):
    share: Percent = Percent(1)


def test_types_with_parse_are_read_by_it() -> None:
    assert decode({"share": "25%"}, WithPercent, read("p: {share: 25%}"), "p").share == 0.25
