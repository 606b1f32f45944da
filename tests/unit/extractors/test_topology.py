"""Where servers are, and who is near whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import epp
from epp.datalayer.notifications import notify_endpoints
from epp.testing import assemble, plugin, request
from epp_plugins.extractors.topology import TopologyExtractor
from epp_plugins.extractors.topology_header import decode, encode
from epp_plugins.filters.topology_affinity import TopologyAffinityFilter
from epp_plugins.requestcontrol.topology_stamp import TopologyStampHandler
from epp_plugins.scorers.topology_affinity import TopologyAffinityScorer

HOST, RACK, ZONE, REGION = (
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
)


def server(number: int, hostname: str = "", **labels: str) -> epp.Endpoint:
    names = {"host": HOST, "rack": RACK, "zone": ZONE, "region": REGION}
    return epp.Endpoint(
        name=f"s{number}-rank-0",
        address=f"10.0.0.{number}",
        port=8000,
        labels={names.get(name, name): value for name, value in labels.items()},
        pod=f"s{number}",
        hostname=hostname,
    )


def placed(*servers: epp.Endpoint, **parameters: str) -> epp.EndpointTable:
    table = epp.EndpointTable()
    extractor = plugin(TopologyExtractor, parameters, table=table)
    notify_endpoints(table, [extractor], clock=lambda: 0.0)
    for endpoint in servers:
        table.add(endpoint)
    return table


def seen(table: epp.EndpointTable) -> epp.Endpoints:
    """In the order of the servers' numbers."""
    rows = [row for row in table.rows.tolist() if table.endpoints[row] is not None]
    rows.sort(key=lambda row: str(table.endpoints[row]))
    return epp.Endpoints(table, np.array(rows, dtype=np.intp), 0.0)


def beside(peer: epp.Endpoint | None) -> epp.InferenceRequest:
    made = request()
    if peer is not None:
        made.attributes[epp.PEER_ENDPOINT] = peer
    return made


PEER = server(1, host="h1", rack="r1", zone="z1", region="g1")
SERVERS = (
    PEER,
    server(2, host="h2", rack="r1", zone="z1", region="g1"),
    server(3, host="h3", rack="r2", zone="z1", region="g1"),
    server(4, host="h4", rack="r3", zone="z2", region="g1"),
    server(5, host="h5", rack="r4", zone="z3", region="g2"),
    server(6),
)


def test_places_follow_the_labels_of_the_pod() -> None:
    table = placed(PEER, server(2, hostname="from-spec", zone="z"), server(3, hostname="ignored", host="label"))
    places = seen(table).attribute("Topology/topology-extractor")
    assert places == [
        epp.Topology("h1", "r1", "z1", "g1"),
        epp.Topology(hostname="from-spec", zone="z"),
        epp.Topology(hostname="label"),
    ]
    table.add(server(1, host="moved"))
    assert seen(table).attribute("Topology/topology-extractor")[0] == epp.Topology(hostname="moved")


def test_labels_of_ones_own() -> None:
    table = placed(server(1, slice="s7", switch="leaf-3"), hostname="slice", rack="switch")
    assert seen(table).attribute("Topology/topology-extractor") == [epp.Topology("s7", "leaf-3")]


def test_the_state_says_what_is_known() -> None:
    table = epp.EndpointTable()
    extractor = plugin(TopologyExtractor, table=table)
    for endpoint in SERVERS:
        table.add(endpoint)
    notify_endpoints(table, [extractor], clock=lambda: 0.0)  # of those that are there already, too
    known = {"hostname": 5, "rack": 5, "zone": 5, "region": 5}
    assert extractor.dump_state() == {"endpoints": 6, "known": known}


def test_nearness_is_scored() -> None:
    table = placed(*SERVERS)
    scorer = plugin(TopologyAffinityScorer, table=table)
    assert scorer.score(beside(PEER), seen(table)).tolist() == [1.0, 0.2, 0.05, 0.02, 0.0, 0.0]
    assert scorer.score(beside(SERVERS[4]), seen(table)).tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def test_what_is_not_known_is_near_nobody() -> None:
    table = placed(*SERVERS, server(7))
    scorer = plugin(TopologyAffinityScorer, table=table)
    for peer in (None, SERVERS[5], server(99, host="h1")):
        assert scorer.score(beside(peer), seen(table)).tolist() == [0.0] * 7
    elsewhere = plugin(TopologyAffinityScorer, {"topologyProducerName": "another"}, table=table)
    assert elsewhere.score(beside(PEER), seen(table)).tolist() == [0.0] * 7


def test_scores_follow_changes() -> None:
    table = placed(*SERVERS)
    scorer = plugin(TopologyAffinityScorer, table=table)
    assert scorer.score(beside(PEER), seen(table))[1] == 0.2
    table.add(server(2, host="h1"))
    assert scorer.score(beside(PEER), seen(table))[1] == 1.0
    table.remove(PEER.host_port)
    assert scorer.score(beside(PEER), seen(table)).tolist() == [0.0] * 5


@pytest.mark.parametrize(("level", "near"), [("host", 1), ("rack", 2), ("zone", 3), ("region", 4)])
def test_nearness_is_demanded(level: str, near: int) -> None:
    table = placed(*SERVERS)
    kept = plugin(TopologyAffinityFilter, {"minAffinity": level}, table=table).filter(beside(PEER), seen(table))
    assert kept.tolist() == [True] * near + [False] * (6 - near)


def test_the_filter_never_empties_a_profile() -> None:
    table = placed(*SERVERS)
    demanding = plugin(TopologyAffinityFilter, table=table)
    others = seen(table).take([1, 2, 3])
    assert demanding.filter(beside(PEER), others).tolist() == [True] * 3
    assert demanding.filter(beside(None), others).tolist() == [True] * 3
    assert demanding.filter(beside(SERVERS[5]), others).tolist() == [True] * 3


def test_nearness_is_worth_so_many_requests() -> None:
    table = placed(*SERVERS)
    near_and_far = seen(table).take([0, 1, 2])
    filter_ = plugin(TopologyAffinityFilter, {"minAffinity": "rack", "loadAllowance": 3}, table=table)
    table.columns["inflight_requests"][near_and_far.rows] = [9, 5, 2]
    assert filter_.filter(beside(PEER), near_and_far.take([0, 1, 2])).tolist() == [True, True, False]
    table.columns["inflight_requests"][near_and_far.rows] = [9, 6, 2]
    assert filter_.filter(beside(PEER), seen(table).take([0, 1, 2])).tolist() == [True] * 3
    with_unknown = seen(table).take([0, 1, 2, 5])
    assert filter_.filter(beside(PEER), with_unknown).tolist() == [True, True, False, False]
    assert filter_.filter(beside(PEER), seen(table).take([0, 1])).tolist() == [True, True]


def test_in_a_configuration() -> None:
    made = assemble(
        """
        plugins:
        - {type: topology-extractor, name: where, parameters: {rack: switch}}
        - {type: topology-affinity-scorer, parameters: {topologyProducerName: where}}
        - {type: topology-affinity-filter, parameters: {topologyProducerName: where, loadAllowance: 2}}
        - {type: endpoint-notification-source}
        schedulingProfiles:
        - name: default
          plugins:
          - {pluginRef: topology-affinity-filter}
          - {pluginRef: topology-affinity-scorer}
        dataLayer:
          sources:
          - {pluginRef: endpoint-notification-source, extractors: [{pluginRef: where}]}
        """
    )
    assert [extractor.name for extractor in made.assembly.endpoint_extractors] == ["where"]
    assert made.assembly.warnings == ()
    assert "inflight-load-producer" in made.assembly.plugins.by_name  # the allowance compares its counts


def test_without_an_extractor_the_start_says_so() -> None:
    made = assemble("plugins: [{type: topology-affinity-scorer}]\n")
    assert any("goes without Topology/topology-extractor" in warning for warning in made.assembly.warnings)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (epp.Topology("h1", "r1", "z1", "g1"), "host=h1,rack=r1,zone=z1,region=g1"),
        (epp.Topology(zone="us-east1-a"), "zone=us-east1-a"),
        (epp.Topology(), ""),
    ],
)
def test_a_place_as_a_header(place: epp.Topology, value: str) -> None:
    assert encode(place) == value
    assert decode(value) == place


def test_values_that_would_break_a_header_are_left_out() -> None:
    assert encode(epp.Topology("a,host=b", "r=1", "z\r\nx-other: 1", "zürich")) == ""
    assert decode("region=g1,floor=3,host,zone=z1,=x") == epp.Topology(zone="z1", region="g1")
    assert decode("host=" + "h" * 2000) == epp.Topology()


def told(value: str) -> epp.InferenceRequest:
    return request(headers={"x-peer-topology": value})


def test_the_peer_of_another_picker() -> None:
    table = placed(*SERVERS)
    scorer = plugin(TopologyAffinityScorer, {"peerTopologyHeader": "X-Peer-Topology"}, table=table)
    near = told("host=h1,rack=r1,zone=z1,region=g1")
    assert scorer.score(near, seen(table)).tolist() == [1.0, 0.2, 0.05, 0.02, 0.0, 0.0]
    # Places where none of these servers is do not become the same place.
    assert scorer.score(told("host=h9,rack=r9,zone=z1"), seen(table)).tolist() == [0.05, 0.05, 0.05, 0.0, 0.0, 0.0]
    for nothing in ("", "nonsense", "floor=3"):
        assert scorer.score(told(nothing), seen(table)).tolist() == [0.0] * 6
    near.attributes[epp.PEER_ENDPOINT] = SERVERS[4]  # chosen here: that counts
    assert scorer.score(near, seen(table))[4] == 1.0
    deaf = plugin(TopologyAffinityScorer, table=table)
    assert deaf.score(told("host=h1"), seen(table)).tolist() == [0.0] * 6


def test_nearness_to_the_peer_of_another_picker_is_demanded() -> None:
    table = placed(*SERVERS)
    parameters = {"peerTopologyHeader": "x-peer-topology", "minAffinity": "zone"}
    kept = plugin(TopologyAffinityFilter, parameters, table=table)
    assert kept.filter(told("zone=z1"), seen(table)).tolist() == [True, True, True, False, False, False]
    assert kept.filter(told("zone=z9"), seen(table)).all()
    assert kept.filter(told(""), seen(table)).all()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TopologyAffinityScorer, "peerTopologyHeader"),
        (TopologyAffinityFilter, "peerTopologyHeader"),
        (TopologyStampHandler, "headerName"),
    ],
)
def test_another_header_would_reach_nobody(kind: type[epp.Plugin[Any]], name: str) -> None:
    with pytest.raises(epp.ConfigError, match=f"{name} is 'x-mine'"):
        plugin(kind, {name: "x-mine"})
