"""Filters that look at labels: selector, one label, role; and the column of label values they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.testing import endpoints, plugin, request
from epp_plugins.filters.by_label import ByLabelFilter
from epp_plugins.filters.decode import DecodeFilter
from epp_plugins.filters.encode import EncodeFilter
from epp_plugins.filters.label_column import LabelColumn
from epp_plugins.filters.label_selector import ByLabelSelectorFilter, LabelSelectorFilter
from epp_plugins.filters.prefill import PrefillFilter

ZONES: list[dict[str, str]] = [{"zone": "a", "gpu": "h100"}, {"zone": "b", "gpu": "h100"}, {"zone": "b"}, {}]


def kept(made: epp.Filter[Any], labels: list[dict[str, str]]) -> list[bool]:
    mask = made.filter(request(), endpoints(labels=labels))
    assert mask.dtype == np.bool_
    result: list[bool] = mask.tolist()
    return result


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"matchLabels": {"zone": "b"}}, [False, True, True, False]),
        ({"matchLabels": {"zone": "b", "gpu": "h100"}}, [False, True, False, False]),
        ({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "c"]}]}, [True, False, False, False]),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, [False, True, True, True]),
        ({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}, [True, True, False, False]),
        ({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}, [False, False, True, True]),
        (
            {
                "matchLabels": {"zone": "b"},
                "matchExpressions": [
                    {"key": "gpu", "operator": "DoesNotExist"},
                    {"key": "zone", "operator": "Exists"},
                ],
            },
            [False, False, True, False],
        ),
    ],
)
def test_label_selector(selector: dict[str, Any], expected: list[bool]) -> None:
    assert kept(plugin(LabelSelectorFilter, selector), ZONES) == expected
    assert kept(plugin(ByLabelSelectorFilter, selector), ZONES) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ({"key": "a", "operator": "In"}, "at least one value"),
        ({"key": "a", "operator": "NotIn", "values": []}, "at least one value"),
        ({"key": "a", "operator": "Exists", "values": ["x"]}, "no values"),
        ({"key": "a", "operator": "in", "values": ["x"]}, "invalid enum value"),
        ({"key": "", "operator": "Exists"}, "length >= 1"),
        ({"operator": "Exists"}, "`key` is missing"),
        ({"key": "a", "operator": "Exists", "value": "x"}, "did you mean `values`"),
    ],
)
def test_label_selector_is_checked(expression: dict[str, Any], message: str) -> None:
    with pytest.raises(epp.ConfigError, match=message):
        plugin(LabelSelectorFilter, {"matchExpressions": [expression]})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"label": "zone", "validValues": ["a"]}, [True, False, False, False]),
        ({"label": "zone", "validValues": ["a", "b"]}, [True, True, True, False]),
        ({"label": "zone", "validValues": ["a"], "allowsNoLabel": True}, [True, False, False, True]),
        ({"label": "gpu", "allowsNoLabel": True}, [False, False, True, True]),
        ({"label": "zone", "validValues": [""]}, [False, False, False, False]),
    ],
)
def test_by_label(parameters: dict[str, Any], expected: list[bool]) -> None:
    assert kept(plugin(ByLabelFilter, parameters), ZONES) == expected


def test_by_label_that_nothing_could_pass_is_refused() -> None:
    with pytest.raises(epp.ConfigError, match="no server would ever pass"):
        plugin(ByLabelFilter, {"label": "zone"})


def test_former_names_are_deprecated() -> None:
    assert {ByLabelFilter.stability, ByLabelSelectorFilter.stability} == {"deprecated"}


ROLES = ["encode", "prefill", "decode", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode", "other"]


@pytest.mark.parametrize(
    ("kind", "roles", "unlabelled"),
    [
        (EncodeFilter, {"encode", "encode-prefill", "encode-prefill-decode"}, False),
        (PrefillFilter, {"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"}, False),
        (DecodeFilter, {"decode", "prefill-decode", "both", "encode-prefill-decode"}, True),
    ],
)
def test_roles(kind: type[epp.Filter[Any]], roles: set[str], unlabelled: bool) -> None:
    labels = [{"llm-d.ai/role": role} for role in ROLES] + [{}, {"llm-d.ai/role": ""}]
    assert kept(plugin(kind), labels) == [role in roles for role in ROLES] + [unlabelled, False]


class TestLabelColumn:
    def made(self) -> tuple[LabelColumn[np.float64], list[int]]:
        calls: list[int] = []

        def length(labels: Any) -> float:
            calls.append(1)
            return float(len(labels))

        return LabelColumn(length, np.float64), calls

    def test_computed_once_per_version_of_the_table(self) -> None:
        column, calls = self.made()
        everybody = endpoints(labels=ZONES)
        assert column.of(everybody).tolist() == [2.0, 2.0, 1.0, 0.0]
        assert column.of(everybody.take([3, 0])).tolist() == [0.0, 2.0]
        assert len(calls) == 4

    def test_follows_labels_and_endpoints(self) -> None:
        column, _ = self.made()
        everybody = endpoints(labels=ZONES)
        table = everybody.table
        column.of(everybody)
        table.add(epp.Endpoint(name="pod-3-rank-0", address="10.0.0.4", port=8000, labels={"a": "", "b": "", "c": ""}))
        assert column.of(table.all(0.0)).tolist() == [2.0, 2.0, 1.0, 3.0]
        table.remove("10.0.0.1:8000")
        assert column.of(table.all(0.0)).tolist() == [2.0, 1.0, 3.0]

    def test_another_table_is_another_column(self) -> None:
        column, _ = self.made()
        assert column.of(endpoints(labels=ZONES)).tolist() == [2.0, 2.0, 1.0, 0.0]
        assert column.of(endpoints(labels=[{}] * 4)).tolist() == [0.0] * 4

    def test_what_is_returned_belongs_to_the_caller(self) -> None:
        column, _ = self.made()
        everybody = endpoints(labels=ZONES)
        column.of(everybody)[:] = 9
        assert column.of(everybody).tolist() == [2.0, 2.0, 1.0, 0.0]
