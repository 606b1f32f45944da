"""The request headers that tell the proxy beside a decode server who reads the prompt and who encodes its media.

A client's own never get that far: the gateway is told to remove them from every request.
"""

from __future__ import annotations

import epp

PREFILLER = "x-prefiller-host-port"
"""`ip:port` of the prefill server."""

ENCODERS = "x-encoder-hosts-ports"
"""`ip:port` of each encode server, with commas between."""

DATA_PARALLEL = "x-data-parallel-host-port"
"""`ip:port` of the rank that shall answer, behind the destination's port."""


def name_servers(
    result: epp.SchedulingResult, prefill: epp.ProfileResult | None, encode: epp.ProfileResult | None
) -> None:
    """Set the headers on the request towards the decode server. Only the first prefill server is named.

    A profile that is the primary one names nobody: the request goes there anyway.
    """
    target = result.target
    if prefill is not None and prefill is not target:
        result.headers[PREFILLER] = prefill.picked[0].host_port
    if encode is not None and encode is not target:
        result.headers[ENCODERS] = ",".join([endpoint.host_port for endpoint in encode.picked])
