"""`decode-filter`: servers that generate answers.

What it does: keeps servers whose label `llm-d.ai/role` is `decode`, `prefill-decode`, `both` or
`encode-prefill-decode`, and those without the label, so that a pool that knows nothing of roles serves as before.

When to use it: first in the profile that chooses the server that answers.

Parameters, metrics: none. Failure: no such server ends the profile with 429.
"""

from __future__ import annotations

from epp_plugins.filters.role import RoleFilter


class DecodeFilter(RoleFilter):
    """Servers that generate answers, and those that say nothing of their role."""

    type = "decode-filter"
    roles = frozenset({"decode", "prefill-decode", "both", "encode-prefill-decode"})
    unlabelled = True
