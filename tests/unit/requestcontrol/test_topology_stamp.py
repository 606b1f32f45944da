"""`topology-stamp-handler`: where the server is that answered, for the picker of the next phase."""

from __future__ import annotations

from typing import Any

import numpy as np

import epp
from epp.datalayer.notifications import notify_endpoints
from epp.testing import plugin, request
from epp_plugins.extractors.topology import TopologyExtractor
from epp_plugins.requestcontrol.topology_stamp import TopologyStampHandler


def answered(parameters: dict[str, Any], *, gone: bool = False, **labels: str) -> dict[str, str]:
    """The headers that the answer gets from a server with these labels."""
    table = epp.EndpointTable()
    notify_endpoints(table, [plugin(TopologyExtractor, table=table)], clock=lambda: 0.0)
    names = {"zone": "topology.kubernetes.io/zone", "host": "kubernetes.io/hostname"}
    endpoint = epp.Endpoint("a", "10.0.0.1", 8000, labels={names[key]: value for key, value in labels.items()})
    row = table.add(endpoint)
    made = plugin(TopologyStampHandler, parameters, table=table)
    asked = request()
    candidates = epp.Endpoints(table, np.array([row]), 0.0)
    result = epp.ProfileResult("prefill", (endpoint,), (row,), candidates, np.ones(1))
    made.on_picked(asked, epp.SchedulingResult("prefill", {"prefill": result, "encode": None}))
    if gone:
        table.remove(endpoint.host_port)
    response = epp.InferenceResponse()
    made.on_response_headers(asked, response)
    return response.set_headers


def test_the_place_of_the_chosen_server() -> None:
    assert answered({}, zone="z1", host="h1") == {"x-peer-topology": "host=h1,zone=z1"}
    assert answered({"profileName": "prefill"}, zone="z1") == {"x-peer-topology": "zone=z1"}
    assert answered({}, zone="z1", gone=True) == {"x-peer-topology": "zone=z1"}


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert answered({}) == {}
    assert answered({"profileName": "encode"}, zone="z1") == {}
    assert answered({"profileName": "missing"}, zone="z1") == {}
    assert answered({"topologyProducerName": "another"}, zone="z1") == {}
