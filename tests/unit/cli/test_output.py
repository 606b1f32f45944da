"""Tables on a terminal, columns in a pipe, YAML that can be read back."""

from __future__ import annotations

import io

import pytest
import yaml

from epp.cli.output import print_json, table, yaml_lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_in_a_pipe() -> None:
    out = io.StringIO()
    table("things", ("name", "what"), [("a", "one [1]"), ("long-name", "")], out)
    assert out.getvalue() == "things:\nNAME       WHAT\na          one [1]\nlong-name\n"


def test_a_table_on_a_terminal() -> None:
    out = Terminal()
    table("things", ("name", "what"), [("a", "one [1] of [b]")], out)
    assert "one [1] of [b]" in out.getvalue()
    assert "things" in out.getvalue()


def test_json() -> None:
    out = io.StringIO()
    print_json({"ä": [1]}, out)
    assert out.getvalue() == '{\n  "ä": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize(
    "tree",
    [
        {"a": 1, "b": [1, {"c": {"d": []}, "e": [[1, 2], []]}], "f": {}},
        {
            "texts": [
                "yes",
                "Null",
                "1",
                "-5",
                "1e3",
                "0x10",
                "a: b",
                "a#b",
                "60s",
                "x y",
                "",
                "é",
                "a:",
                "12:30",
                "~",
                ".",
            ]
        },
        {"values": [None, True, 1.5, 0, float("inf"), float("-inf")]},
        {"*": "&a", "true": 1},
    ],
)
def test_yaml_reads_back(tree: object) -> None:
    assert yaml.safe_load("\n".join(yaml_lines(tree, frozenset()))) == tree


def test_marks_are_on_what_was_filled_in_and_all_below() -> None:
    tree = {"a": [{"b": 1, "c": {"d": 2}}, {"b": 3}], "e": 4}
    assert yaml_lines(tree, frozenset({"a[1]", "a[0].c"}), "# *") == [
        "a:",
        "  - b: 1",
        "    c:  # *",
        "      d: 2  # *",
        "  - b: 3  # *",
        "e: 4",
    ]
