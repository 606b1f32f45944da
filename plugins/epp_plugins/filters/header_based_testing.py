"""`header-based-testing-filter`: a test client names the servers that may answer.

What it does: the request header `test-epp-endpoint-selection` holds `ip` or `ip:port`, several with commas. Only those
servers stay; an `ip` alone stands for all its ports. Entries that are no server of the pool are ignored. IPv6 addresses
are written with or without brackets, with brackets when a port follows.

When to use it: conformance and integration tests of gateways. Not in production: any client could choose its server.

Parameters, metrics: none. Failure: a header that names no server of the pool ends the profile with 429; without the
header nobody is left out.
"""

from __future__ import annotations

import numpy as np

import epp

HEADER = "test-epp-endpoint-selection"


class HeaderBasedTestingFilter(epp.Filter[epp.NoParams]):
    """Servers that a header names."""

    type = "header-based-testing-filter"

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        wanted = {entry for part in request.headers.get(HEADER, "").split(",") if (entry := part.strip())}
        if not wanted:
            return np.ones(len(endpoints), dtype=np.bool_)
        hosts = {entry.strip("[]") for entry in wanted}  # a bracket before a port is left alone: no address has one
        return np.array(
            [endpoint.host_port in wanted or endpoint.address in hosts for endpoint in endpoints], dtype=np.bool_
        )
