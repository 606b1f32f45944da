"""`encode-filter`, `prefill-filter`, `decode-filter`: the servers that take part in one phase of disaggregated serving.

What they do: read the label `llm-d.ai/role` and keep the servers whose role includes the phase. A server without the
label passes `decode-filter`, so that a pool that knows nothing of roles serves as before.

When to use them: first in a profile that chooses the server of that phase.

| filter | roles |
|---|---|
| `encode-filter` | `encode`, `encode-prefill`, `encode-prefill-decode` |
| `prefill-filter` | `prefill`, `encode-prefill`, `prefill-decode`, `both`, `encode-prefill-decode` |
| `decode-filter` | `decode`, `prefill-decode`, `both`, `encode-prefill-decode`, or no label |

Parameters, metrics: none. Failure: no server of the role ends the profile with 429.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

import epp
from epp_plugins.filters.label_column import LabelColumn

ROLE_LABEL = "llm-d.ai/role"


class _RoleFilter(epp.Filter[epp.NoParams]):
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


class EncodeFilter(_RoleFilter):
    """Servers that encode images, audio and video."""

    type = "encode-filter"
    roles = frozenset({"encode", "encode-prefill", "encode-prefill-decode"})


class PrefillFilter(_RoleFilter):
    """Servers that process prompts."""

    type = "prefill-filter"
    roles = frozenset({"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"})


class DecodeFilter(_RoleFilter):
    """Servers that generate answers, and those that say nothing about their role."""

    type = "decode-filter"
    roles = frozenset({"decode", "prefill-decode", "both", "encode-prefill-decode"})
    unlabelled = True
