"""`destination-endpoint-served-verifier`: tells a test client which server answered.

What it does: puts the `ip:port` of the endpoint that served the request, as the gateway told it (else the picked one),
into the response header `x-conformance-test-served-endpoint`.

When to use: the conformance suite of the Gateway API Inference Extension, together with `header-based-testing-filter`.
Not in production: it tells clients the addresses of the pool.

Parameters, metrics: none. Failure behaviour: a gateway that shows no response headers gets no header.
"""

from __future__ import annotations

from epp.api import InferenceRequest, InferenceResponse, NoParams, Plugin

HEADER = "x-conformance-test-served-endpoint"


class ServedEndpointVerifier(Plugin[NoParams]):
    """Copies `response.served` to the answer."""

    type = "destination-endpoint-served-verifier"

    def on_response_headers(self, request: InferenceRequest, response: InferenceResponse) -> None:
        if response.served:
            response.set_headers[HEADER] = response.served
