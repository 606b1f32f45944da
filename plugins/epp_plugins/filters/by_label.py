"""`by-label`: the servers whose label has one of the given values. Deprecated: use `label-selector-filter`.

What it does: keeps servers whose label `label` is one of `validValues`; those without the label only with
`allowsNoLabel`.

When to use it: only in configurations that already have it. `label-selector-filter` with an `In` expression does the
same for labelled servers.

Parameters: `label`, `validValues`, `allowsNoLabel` (false).

Metrics: none. Failure: no matching server ends the profile with 429.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np

import epp
from epp_plugins.filters.label_column import LabelColumn


class ByLabelFilterParams(epp.Params, frozen=True):
    """See the module."""

    label: Annotated[str, msgspec.Meta(min_length=1, description="name of the label")]
    valid_values: Annotated[tuple[str, ...], msgspec.Meta(description="values that pass")] = ()
    allows_no_label: Annotated[bool, msgspec.Meta(description="whether servers without the label pass")] = False

    def __post_init__(self) -> None:
        if not self.valid_values and not self.allows_no_label:
            raise ValueError("validValues is empty and allowsNoLabel is false: no server would ever pass")


class ByLabelFilter(epp.Filter[ByLabelFilterParams]):
    """Servers by the value of one label."""

    type = "by-label"
    stability = "deprecated"
    Params = ByLabelFilterParams

    def __init__(self, params: ByLabelFilterParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._values = frozenset(params.valid_values)
        self._passes = LabelColumn(self._valid, np.bool_)

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        return self._passes.of(endpoints)

    def _valid(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.params.label)
        return self.params.allows_no_label if value is None else value in self._values
