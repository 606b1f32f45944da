"""Handlers that older configurations name: they load with a warning and do what they did."""

from __future__ import annotations

import logging

import pytest

import epp
from epp.director.admission import SheddableAdmission
from epp.director.director import Director
from epp.director.flight import RequestHead
from epp.director.parsing import ParserTable
from epp.director.request_flight import RequestFlight
from epp.scheduling.scheduler import scheduler_of
from epp.telemetry.metrics import Registry
from epp.telemetry.recorder import MetricsRecorder, PluginRecorder
from epp.telemetry.request_metrics import RequestMetrics
from epp.testing import Assembled, assemble, endpoints, request

PD = """
plugins:
- type: pd-profile-handler
  parameters: {%s}
- type: prefix-based-pd-decider
  parameters: {nonCachedTokens: 8}
- type: always-disagg-pd-decider
- type: prefill-header-handler
- {type: prefill-filter}
- {type: decode-filter}
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: decode-filter}]}
- {name: prefill, plugins: [{pluginRef: prefill-filter}]}
"""


def pool(made: Assembled, *roles: str) -> epp.Endpoints:
    return endpoints(labels=[{"llm-d.ai/role": role} for role in roles], table=made.table)


def decisions(made: Assembled) -> dict[tuple[str, str], float]:
    family = made.metrics.source("disagg_decision_total")
    assert family is not None
    return {(values[1], values[3]): child.value for values, child in family.children()}  # type: ignore[union-attr]


def test_pd_profile_handler() -> None:
    made = assemble(PD % "")
    candidates = pool(made, "decode", "prefill")
    assert made.schedule(request("short"), candidates).headers == {}
    assert made.schedule(request("long " * 20), candidates).headers == {"x-prefiller-host-port": "10.0.0.2:8000"}
    assert decisions(made) == {
        ("pd-profile-handler", "decode-only"): 1.0,
        ("pd-profile-handler", "prefill-decode"): 1.0,
    }
    told = "\n".join(made.assembly.warnings)
    assert "plugin type `pd-profile-handler` is deprecated" in told
    assert "plugin type `prefill-header-handler` is deprecated" in told
    assert "always-disagg-pd-decider is never used" in told


def test_pd_profile_handler_with_a_primary_port(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = assemble(PD % "primaryPort: 9000, deciderPluginName: always-disagg-pd-decider, prefixPluginType: x")
    result = made.schedule(request("short"), pool(made, "decode", "prefill"))
    assert result.destination == "10.0.0.1:9000"
    assert result.headers == {
        "x-data-parallel-host-port": "10.0.0.1:8000",
        "x-prefiller-host-port": "10.0.0.2:8000",
    }
    assert "parameter prefixPluginType has no effect" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("primaryPort: 70000", "primaryPort"),
        ("deciderPluginName: ''", "deciderPluginName"),
        ("deciderPluginName: prefix", "refers to a plugin named `prefix`"),
        ("decodeProfile: prefill", "must be two different profiles"),
        ("prefillProfile: other", "no scheduling profile `other` for the stage prefill"),
    ],
)
def test_pd_profile_handler_refuses(parameters: str, says: str) -> None:
    with pytest.raises(epp.ConfigError) as refused:
        assemble(PD % parameters)
    assert says in str(refused.value)


@pytest.mark.parametrize("kind", ["disagg-headers-handler", "prefill-header-handler"])
def test_header_handlers_name_what_profiles_chose(kind: str) -> None:
    text = f"""
    plugins:
    - type: header-profile-handler
    - {{type: {kind}, parameters: {{prefillProfile: read, encodeProfile: see}}}}
    schedulingProfiles:
    - {{name: decode, plugins: []}}
    """
    made = assemble(text)
    candidates = endpoints(3)

    def chosen(profile: str, *positions: int) -> epp.ProfileResult:
        rows = tuple(int(candidates.rows[position]) for position in positions)
        picked = tuple(candidates[position] for position in positions)
        return epp.ProfileResult(profile, picked, rows, candidates, candidates.waiting)

    result = epp.SchedulingResult(
        "decode", {"decode": chosen("decode", 0), "read": chosen("read", 1, 2), "see": chosen("see", 1, 2)}
    )
    made[kind].on_picked(request(), result)
    assert result.headers == {
        "x-prefiller-host-port": "10.0.0.2:8000",
        "x-encoder-hosts-ports": "10.0.0.2:8000,10.0.0.3:8000",
    }
    alone = epp.SchedulingResult("read", {"read": chosen("read", 0), "see": None})
    made[kind].on_picked(request(), alone)
    assert alone.headers == {}


def test_data_parallel_profile_handler_sends_all_to_one_port() -> None:
    made = assemble("plugins: [{type: data-parallel-profile-handler, parameters: {primaryPort: 8100}}]")
    table = made.table
    table.add(epp.Endpoint("pod-rank-1", "fd00::1", 8001, rank=1))
    metrics = RequestMetrics(Registry())
    log = logging.getLogger("test")
    timings = PluginRecorder(metrics, log, made.clock)
    scheduler = scheduler_of(made.assembly.profiles, made.assembly.handler, timings=timings, clock=made.clock)
    director = Director(
        table=table,
        parsers=ParserTable(made.assembly.parsers),
        scheduler=scheduler,
        producers=made.assembly.plugins.producers,
        admitters=(),
        plugins=made.assembly.plugins.start_order,
        admission=SheddableAdmission(made.assembly.saturation_detector, timings),
        recorder=MetricsRecorder(metrics, log, made.clock),
        timings=timings,
        clock=made.clock,
    )
    head = RequestHead({}, "/v1/completions", "POST", "r", 0.0)
    flight = director.decide(head, b'{"model": "m", "prompt": "Hello"}')
    assert isinstance(flight, RequestFlight)
    assert flight.decision.destination == "[fd00::1]:8100"
    assert flight.decision.set_headers == {"x-data-parallel-host-port": "[fd00::1]:8001"}
    assert table.columns["inflight_requests"][0] == 1.0


@pytest.mark.parametrize("port", [0, 65536])
def test_data_parallel_profile_handler_refuses_ports_that_are_none(port: int) -> None:
    with pytest.raises(epp.ConfigError, match="primaryPort"):
        assemble(f"plugins: [{{type: data-parallel-profile-handler, parameters: {{primaryPort: {port}}}}}]")


def test_data_parallel_profile_handler_refuses_several_profiles() -> None:
    text = """
    plugins: [{type: data-parallel-profile-handler}]
    schedulingProfiles: [{name: a, plugins: []}, {name: b, plugins: []}]
    """
    with pytest.raises(epp.ConfigError, match="runs the only profile, but there are 2: a, b"):
        assemble(text)
