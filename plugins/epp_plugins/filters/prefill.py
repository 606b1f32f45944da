"""`prefill-filter`: servers that process prompts.

What it does: keeps servers whose label `llm-d.ai/role` is `prefill`, `encode-prefill`, `prefill-decode`, `both` or
`encode-prefill-decode`.

When to use it: first in the profile that chooses the prefill server.

Parameters, metrics: none. Failure: no such server ends the profile with 429.
"""

from __future__ import annotations

from epp_plugins.filters.role import RoleFilter


class PrefillFilter(RoleFilter):
    """Servers that process prompts."""

    type = "prefill-filter"
    roles = frozenset({"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"})
