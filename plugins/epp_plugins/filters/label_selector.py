"""`label-selector-filter`: the servers whose labels match a Kubernetes label selector.

What it does: keeps servers that satisfy every entry of `matchLabels` and `matchExpressions`. `In` needs the label with
one of the values; `NotIn` is also satisfied without the label; `Exists` and `DoesNotExist` look at the label alone. An
empty selector keeps everybody.

When to use it: to reserve servers (an accelerator, a zone, a tenant) for one scheduling profile.

Parameters: `matchLabels` (label: value), `matchExpressions` (list of `key`, `operator`, `values`).

`by-label-selector` is the former name of this filter: use `label-selector-filter`.

Metrics: none. Failure: no matching server ends the profile with 429.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import numpy as np

import epp
from epp_plugins.filters.label_column import LabelColumn


class Requirement(epp.Params, frozen=True):
    """One entry of `matchExpressions`."""

    key: Annotated[str, msgspec.Meta(min_length=1, description="name of the label")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"], msgspec.Meta(description="what must hold of the label")
    ]
    values: Annotated[tuple[str, ...], msgspec.Meta(description="for In and NotIn")] = ()

    def __post_init__(self) -> None:
        needs_values = self.operator in ("In", "NotIn")
        if needs_values != bool(self.values):
            needed = "at least one value" if needs_values else "no values"
            raise ValueError(f"operator {self.operator} on label {self.key} needs {needed}")

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a server with these labels satisfies it."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class LabelSelectorFilterParams(epp.Params, frozen=True):
    """A Kubernetes label selector."""

    match_labels: Annotated[dict[str, str], msgspec.Meta(description="labels with the value they must have")] = (
        msgspec.field(default_factory=dict)
    )
    match_expressions: Annotated[
        tuple[Requirement, ...], msgspec.Meta(description="requirements: key, operator, values")
    ] = ()


class LabelSelectorFilter(epp.Filter[LabelSelectorFilterParams]):
    """Servers that match a label selector."""

    type = "label-selector-filter"
    Params = LabelSelectorFilterParams

    def __init__(self, params: LabelSelectorFilterParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._matches = LabelColumn(self._selected, np.bool_)

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        return self._matches.of(endpoints)

    def _selected(self, labels: Mapping[str, str]) -> bool:
        params = self.params
        return all(labels.get(key) == value for key, value in params.match_labels.items()) and all(
            requirement.holds(labels) for requirement in params.match_expressions
        )


class ByLabelSelectorFilter(LabelSelectorFilter):
    """Deprecated: use `label-selector-filter`, which takes the same parameters."""

    type = "by-label-selector"
    stability = "deprecated"
