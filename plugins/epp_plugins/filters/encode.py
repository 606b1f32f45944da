"""`encode-filter`: servers that encode images, audio and video.

What it does: keeps servers whose label `llm-d.ai/role` is `encode`, `encode-prefill` or `encode-prefill-decode`.

When to use it: first in the profile that chooses the encoding server.

Parameters, metrics: none. Failure: no such server ends the profile with 429.
"""

from __future__ import annotations

from epp_plugins.filters.role import RoleFilter


class EncodeFilter(RoleFilter):
    """Servers that encode."""

    type = "encode-filter"
    roles = frozenset({"encode", "encode-prefill", "encode-prefill-decode"})
