"""Which rewrite decides, and which target is drawn."""

from __future__ import annotations

import random
from collections import Counter

from epp.director.objectives import ObjectiveTable
from epp.director.rewrites import Rewrite, RewriteRule, RewriteTable, Target


def table(*rewrites: Rewrite) -> RewriteTable:
    made = RewriteTable(random.Random(1))
    made.replace(rewrites)
    return made


def rewrite(name: str, *rules: tuple[tuple[str, ...], str], created: str = "") -> Rewrite:
    return Rewrite(name, tuple(RewriteRule((Target(target),), models) for models, target in rules), created)


def test_no_rule_no_rewrite() -> None:
    assert table().target("m") is None
    assert table(Rewrite("empty", (RewriteRule(()),))).target("m") is None


def test_an_exact_rule_wins_over_one_for_all_whatever_its_age() -> None:
    made = table(
        rewrite("old", ((), "general"), created="2024-01-01T00:00:00Z"),
        rewrite("new", (("m",), "exact"), created="2026-01-01T00:00:00Z"),
    )
    assert made.target("m") == "exact"
    assert made.target("other") == "general"
    assert made.size == 2


def test_then_the_oldest_object_then_the_first_rule() -> None:
    made = table(
        rewrite("a", (("m",), "young"), created="2026-01-02T00:00:00Z"),
        rewrite("b", (("m", "n"), "old"), (("m",), "second"), created="2026-01-01T00:00:00Z"),
        rewrite("c", ((), "z"), created="2026-01-03T00:00:00Z"),
        rewrite("d", ((), "y"), created="2026-01-03T00:00:00Z"),
    )
    assert (made.target("m"), made.target("n"), made.target("?")) == ("old", "old", "z")


def test_weights() -> None:
    drawn: list[tuple[str, str, str]] = []
    made = RewriteTable(random.Random(1), lambda *decision: drawn.append(decision))
    targets = (Target("a", 90), Target("b", 10), Target("never"))
    made.replace([Rewrite("canary", (RewriteRule(targets, ("m",)),))])
    seen = Counter(made.target("m") for _ in range(2000))
    assert set(seen) == {"a", "b"}
    assert 120 < seen["b"] < 280
    assert drawn[0][:2] == ("canary", "m")
    made.replace([Rewrite("even", (RewriteRule((Target("x"), Target("y"))),))])
    seen = Counter(made.target("m") for _ in range(2000))
    assert 850 < seen["x"] < 1150


def test_objectives() -> None:
    made = ObjectiveTable()
    assert made.priority("vip") == 0
    made.replace({"vip": 5, "batch": -1})
    assert (made.priority("vip"), made.priority("batch"), made.priority("?"), len(made)) == (5, -1, 0, 2)
    made.replace({})
    assert made.priority("vip") == 0
