"""`destination-endpoint-served-verifier`: who answered."""

from epp.api import InferenceRequest, InferenceResponse, Payload
from epp.testing import plugin
from epp_plugins.requestcontrol.served_verifier import HEADER, ServedEndpointVerifier


def test_the_server_is_told_when_it_is_known() -> None:
    made = plugin(ServedEndpointVerifier)
    request = InferenceRequest("r", {}, "/", b"", Payload(), 0.0)
    response = InferenceResponse(served="10.0.0.1:8000")
    made.on_response_headers(request, response)
    assert response.set_headers == {HEADER: "10.0.0.1:8000"}
    response = InferenceResponse()
    made.on_response_headers(request, response)
    assert response.set_headers == {}
