"""Which endpoints a request may go to: the pool, or what the gateway's subset hint leaves of it."""

from __future__ import annotations

import numpy as np

from epp.api.endpoints import Endpoints
from epp.api.errors import ServiceUnavailable


def candidates(endpoints: Endpoints, subset: tuple[str, ...] | None) -> Endpoints:
    """All of the pool's endpoints, or those the hint names: `ip:port` exactly, a bare `ip` with every port.

    The protocol's own wording is followed here; llm-d-router compares the IP only. Raises `ServiceUnavailable` when
    nothing is left.
    """
    if subset is not None:
        allowed = frozenset(subset)
        keep = [e.host_port in allowed or e.address in allowed or f"[{e.address}]" in allowed for e in endpoints]
        endpoints = endpoints.take(np.array(keep, dtype=np.bool_))
    if endpoints.rows.size == 0:
        where = (
            "the gateway's subset hint names none of the pool's endpoints"
            if subset is not None
            else "the pool is empty"
        )
        raise ServiceUnavailable(f"no endpoints available: {where}", reason="rejected-no-endpoints")
    return endpoints
