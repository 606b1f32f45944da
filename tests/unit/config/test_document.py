"""YAML and JSON become plain values that remember their lines."""

from __future__ import annotations

import json

import pytest

from epp.config.document import MAX_BYTES, child, parent, read
from epp.config.errors import LocatedError, did_you_mean


def test_values_and_lines() -> None:
    document = read("a: 1\nb:\n  - c: x\n  - [1, 2.5, true]\n", "f.yaml")
    assert document.value == {"a": 1, "b": [{"c": "x"}, [1, 2.5, True]]}
    assert [document.line(p) for p in ("a", "b", "b[0].c", "b[1][2]")] == [1, 2, 3, 4]


def test_a_missing_path_gets_the_line_of_what_contains_it() -> None:
    document = read("a:\n  b:\n    c: 1\n")
    assert document.line("a.b.d.e[3]") == 2
    assert document.line("z") == 1
    assert (parent("a.b[2]"), parent("a"), child("", "a"), child("a[1]", "b")) == ("a.b", "", "a", "a[1].b")


def test_json_is_read_too() -> None:
    value = {"a": [1, -2.5e-3, "x", True, {"b": {}}], "e": 1e3}
    assert read(json.dumps(value, indent=1)).value == value
    assert read('{"e": 1E3}').value == {"e": 1000.0}


def test_null_means_not_given() -> None:
    assert read("a:\nb: null\nc: [~]").value == {"c": [None]}


def test_an_empty_file_is_an_empty_mapping() -> None:
    assert read("# nothing\n").value == {}


def test_texts_stay_texts() -> None:
    assert read("a: 12:30\nb: 2026-01-01\nc: '1e3'\nd: 1:30.5").value == {
        "a": "12:30",
        "b": "2026-01-01",
        "c": "1e3",
        "d": "1:30.5",
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [", 2, "not well-formed"),
        ("a: 1\n\nb:\n  a: 1\n  a: 2", 5, "twice, first on line 4"),
        ("- 1", 1, "expected a mapping"),
        ("just text", 1, "expected a mapping"),
        ("a: !!python/object:os.system x", 1, "tag"),
        ("a: !secret x", 1, "tag"),
        ("a: !!binary aGk=", 1, "tag"),
        ("a: 1\n[1, 2]: x", 2, "key"),
        ("b: &x {c: 1}\na:\n  <<: *x", 3, "merge"),
        ("a: 1\n---\nb: 2", 2, "not well-formed"),
        ("a: *nobody", 1, "not well-formed"),
        ("a: !!int zwölf", 1, "cannot read"),
    ],
)
def test_what_is_wrong_and_where(text: str, line: int, message: str) -> None:
    with pytest.raises(LocatedError, match=message) as error:
        read(text, "f.yaml")
    assert error.value.line == line
    assert str(error.value).startswith(f"f.yaml:{line}: ")


def test_control_characters_are_refused() -> None:
    with pytest.raises(LocatedError, match="not well-formed"):
        read("a: \x00")


def test_bombs_are_refused() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    with pytest.raises(LocatedError, match="aliases expanded"):
        read(laughs)
    with pytest.raises(LocatedError, match="levels deep"):
        read("a: &a [*a]")
    with pytest.raises(LocatedError, match="levels deep"):
        read("[" * 5000)
    with pytest.raises(LocatedError, match="right file"):
        read(" " * (MAX_BYTES + 1))


def test_suggestions() -> None:
    assert did_you_mean("weigth", ["weight", "pluginRef"]) == "did you mean `weight`?"
    assert did_you_mean("plugin_ref", ["weight", "pluginRef"]) == "did you mean `pluginRef`?"
    assert did_you_mean("zzz", ["weight", "name"]) == "known: name, weight"
    assert did_you_mean("zzz", []) == ""
