"""What a scheduler that chose by hand would return."""

from __future__ import annotations

import numpy as np

from epp.api import Endpoints, EndpointTable, ProfileResult, SchedulingResult


def picked(table: EndpointTable, endpoints: Endpoints, **rows: int | None) -> SchedulingResult:
    """The chosen row of each profile, in the order they ran; None: that profile found nothing. `decode` is primary."""
    profiles: dict[str, ProfileResult | None] = {}
    for profile, row in rows.items():
        profiles[profile] = None
        if row is not None:
            endpoint = table.endpoints[row]
            assert endpoint is not None
            profiles[profile] = ProfileResult(profile, (endpoint,), (row,), endpoints, np.zeros(len(endpoints)))
    return SchedulingResult("decode", profiles)
