"""What the filters by role share: the label `llm-d.ai/role`, which says in which phases a server takes part.

Roles are made of phases: `encode` (images, audio, video), `prefill` (the prompt), `decode` (the answer), and their
combinations such as `prefill-decode`; `both` is an older name of that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

import epp
from epp_plugins.filters.label_column import LabelColumn

ROLE_LABEL = "llm-d.ai/role"


class RoleFilter(epp.Filter[epp.NoParams]):
    """Keeps servers whose role is one of `roles`; those without the label only with `unlabelled`."""

    roles: ClassVar[frozenset[str]] = frozenset()
    unlabelled: ClassVar[bool] = False

    def __init__(self, params: epp.NoParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._serves = LabelColumn(self._has_role, np.bool_)

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        return self._serves.of(endpoints)

    def _has_role(self, labels: Mapping[str, str]) -> bool:
        role = labels.get(ROLE_LABEL)
        return self.unlabelled if role is None else role in self.roles
