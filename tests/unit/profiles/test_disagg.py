"""`disagg-profile-handler`: which profiles run, which servers are named, what is counted, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import epp
from epp.telemetry.legacy_metrics import add_legacy_metrics
from epp.telemetry.tracing import OpenTelemetryTracer
from epp.testing import Assembled, assemble, endpoints, plugin, request
from epp_plugins.deciders.always_disagg_pd import AlwaysDisaggPDDecider
from epp_plugins.profiles.disagg import DisaggProfileHandler

HANDLER = """
- type: disagg-profile-handler
  parameters: {{{parameters}}}
- type: always-disagg-pd-decider
- type: always-disagg-multimodal-decider
- {{type: encode-filter}}
- {{type: prefill-filter}}
- {{type: decode-filter}}
- type: queue-scorer
- type: max-score-picker
- {{type: max-score-picker, name: two, parameters: {{maxNumOfEndpoints: 2}}}}
"""
PROFILES = """
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: decode-filter}, {pluginRef: queue-scorer}, {pluginRef: max-score-picker}]}
- {name: prefill, plugins: [{pluginRef: prefill-filter}, {pluginRef: queue-scorer}, {pluginRef: max-score-picker}]}
- {name: encode, plugins: [{pluginRef: encode-filter}, {pluginRef: queue-scorer}, {pluginRef: two}]}
"""
BOTH = "deciders: {prefill: always-disagg-pd-decider, encode: always-disagg-multimodal-decider}"
PREFILL = "deciders: {prefill: always-disagg-pd-decider}"


class Peer(epp.Scorer[epp.NoParams]):
    """Writes down the peer that each of its profiles sees."""

    type = "peer"

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        return (epp.PEER_ENDPOINT,)

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        peer = request.attributes.get(epp.PEER_ENDPOINT)
        self.seen = [*getattr(self, "seen", []), peer.name if peer is not None else None]
        return np.ones(len(endpoints))


def config(parameters: str, profiles: str = PROFILES) -> str:
    return "plugins:" + HANDLER.format(parameters=parameters) + profiles


def pool(made: Assembled, *roles: str) -> epp.Endpoints:
    return endpoints(labels=[{"llm-d.ai/role": role} for role in roles], table=made.table, waiting=[0.0] * len(roles))


def with_image(text: str = "What is this?") -> epp.InferenceRequest:
    asked = request(text)
    assert asked.prompt is not None
    asked.prompt.features = (epp.MediaFeature("image", "ab", 0, 10),)
    return asked


def totals(made: Assembled, name: str = "disagg_decision_total", label: int = 3) -> dict[str, float]:
    family = made.metrics.source(name)
    if family is None:
        return {}
    return {values[label]: child.value for values, child in family.children()}  # type: ignore[union-attr]


def reasons(made: Assembled) -> dict[str, float]:
    return totals(made, "disagg_fallback_total", 2)


def warnings(made: Assembled) -> list[str]:
    return [warning.split(": ", 2)[-1] for warning in made.assembly.warnings if "no scorer" not in warning]


@pytest.mark.parametrize(
    ("parameters", "image", "decision", "headers"),
    [
        ("", True, "decode-only", {}),
        (PREFILL, True, "prefill-decode", {"x-prefiller-host-port": "10.0.0.2:8000"}),
        (BOTH, False, "prefill-decode", {"x-prefiller-host-port": "10.0.0.2:8000"}),
        (
            BOTH,
            True,
            "encode-prefill-decode",
            {"x-prefiller-host-port": "10.0.0.2:8000", "x-encoder-hosts-ports": "10.0.0.3:8000,10.0.0.4:8000"},
        ),
        (
            "deciders: {encode: always-disagg-multimodal-decider}",
            True,
            "encode-decode",
            {"x-encoder-hosts-ports": "10.0.0.3:8000,10.0.0.4:8000"},
        ),
        (
            "stageOrder: prefill-first, deciders: {encode: always-disagg-multimodal-decider}",
            True,
            "encode-prefill-decode",
            {"x-prefiller-host-port": "10.0.0.2:8000", "x-encoder-hosts-ports": "10.0.0.3:8000,10.0.0.4:8000"},
        ),
        ("stageOrder: Prefill_First", False, "prefill-decode", {"x-prefiller-host-port": "10.0.0.2:8000"}),
    ],
)
def test_stages(parameters: str, image: bool, decision: str, headers: dict[str, str]) -> None:
    made = assemble(config(parameters))
    asked = with_image() if image else request()
    result = made.schedule(asked, pool(made, "decode", "prefill", "encode", "encode"))
    named = {name: ",".join(sorted(value.split(","))) for name, value in result.headers.items()}
    assert (result.primary, named) == ("decode", headers)
    assert result.target.picked[0].host_port == "10.0.0.1:8000"
    assert totals(made) == {decision: 1.0}
    assert reasons(made) == {}
    assert (result.prefill is not None) == ("x-prefiller-host-port" in headers)


@pytest.mark.parametrize("parameters", [BOTH, "stageOrder: prefill-first"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/embeddings/?a=b/c"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/v1/messages/count_tokens"),
    ],
)
def test_what_is_not_a_prompt_and_an_answer_is_not_split(parameters: str, method: str, path: str) -> None:
    made = assemble(config(parameters))
    asked = with_image()
    asked.method, asked.path = method, path
    assert made.schedule(asked, pool(made, "decode", "prefill", "encode")).headers == {}
    assert (totals(made), reasons(made)) == ({"decode-only": 1.0}, {})


def test_labels_and_names_of_the_metric() -> None:
    made = assemble(config(PREFILL))
    add_legacy_metrics(made.metrics)
    candidates = pool(made, "decode", "prefill")
    made.schedule(request(model="llama"), candidates)
    made.schedule(request(model=""), candidates)
    family = made.metrics.source("disagg_decision_total")
    assert family is not None
    assert family.name == "llm_d_epp_disagg_decision_total"
    assert family.label_names == ("plugin_name", "plugin_type", "model_name", "decision_type")
    assert [values for values, _ in family.children()] == [
        ("disagg-profile-handler", "disagg-profile-handler", "llama", "prefill-decode"),
        ("disagg-profile-handler", "disagg-profile-handler", "unknown", "prefill-decode"),
    ]
    shown = {source.name: source for source in made.metrics.sources()}
    for name in ("llm_d_epp_pd_decision_total", "llm_d_inference_scheduler_pd_decision_total"):
        assert [values[-2:] for values, _ in shown[name].children()] == [
            ("llama", "prefill-decode"),
            ("unknown", "prefill-decode"),
        ]
    assert shown["llm_d_epp_pd_decision_total"].label_names == family.label_names


@pytest.mark.parametrize("order", ["decode-first", "prefill-first"])
def test_later_profiles_see_the_server_chosen_before(order: str) -> None:
    profiles = PROFILES.replace("queue-scorer", "peer")
    parameters = BOTH if order == "decode-first" else "deciders: {encode: always-disagg-multimodal-decider}"
    text = config(f"stageOrder: {order}, {parameters}", profiles).replace("type: queue-scorer", "type: peer")
    made = assemble(text, types=[Peer])
    made.schedule(with_image(), pool(made, "decode", "prefill", "encode"))
    first = "pod-0-rank-0" if order == "decode-first" else "pod-1-rank-0"
    assert getattr(made["peer"], "seen") == [None, first, first]  # noqa: B009


@pytest.mark.parametrize("parameters", [BOTH, "stageOrder: prefill-first"])
def test_without_prefill_servers_the_request_goes_to_decode_alone(
    parameters: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = assemble(config(parameters))
    candidates = pool(made, "decode", "decode")
    with caplog.at_level(logging.WARNING):
        results = [made.schedule(request(), candidates) for _ in range(3)]
    assert [result.headers for result in results] == [{}, {}, {}]
    assert totals(made) == {"decode-only": 3.0}
    assert reasons(made) == {"no-prefill-endpoint": 3.0}
    assert caplog.text.count("the prefill profile found no server") == 1


def test_without_encode_servers_the_reader_encodes() -> None:
    made = assemble(config(BOTH))
    result = made.schedule(with_image(), pool(made, "decode", "prefill"))
    assert list(result.headers) == ["x-prefiller-host-port"]
    assert totals(made) == {"prefill-decode": 1.0}
    assert reasons(made) == {"no-encode-endpoint": 1.0}


@pytest.mark.parametrize("parameters", [PREFILL, "stageOrder: prefill-first"])
def test_without_decode_servers_the_request_is_refused(parameters: str) -> None:
    made = assemble(config(parameters))
    with pytest.raises(epp.ResourceExhausted, match="profile decode: no endpoint left after filter decode-filter"):
        made.schedule(request(), pool(made, "prefill", "prefill"))
    assert totals(made) == {}


@pytest.mark.parametrize("parameters", [BOTH, "stageOrder: prefill-first"])
def test_a_server_is_not_named_to_itself(parameters: str) -> None:
    """One server that can do everything, chosen for all stages: it does them without asking itself over the network."""
    made = assemble(config(parameters))
    result = made.schedule(with_image(), pool(made, "encode-prefill-decode"))
    assert result.headers == {}
    assert result.prefill is None
    assert totals(made) == {"decode-only": 1.0}
    assert made.table.columns["inflight_requests"][0] == 1.0
    assert reasons(made) == {"same-endpoint": 2.0 if parameters == BOTH else 1.0}


def test_the_prefill_server_may_encode_too() -> None:
    made = assemble(config(BOTH))
    result = made.schedule(with_image(), pool(made, "decode", "encode-prefill"))
    assert result.headers == {"x-prefiller-host-port": "10.0.0.2:8000"}
    assert totals(made) == {"prefill-decode": 1.0}
    assert reasons(made) == {"same-endpoint": 1.0}


class Broken(epp.Decider[epp.NoParams]):
    type = "broken"
    error: Exception = RuntimeError("no idea")

    def disaggregate(self, request: epp.InferenceRequest, decode: epp.ProfileResult | None) -> bool:
        raise self.error


@pytest.mark.parametrize(
    ("parameters", "decision", "count"),
    [
        ("deciders: {prefill: broken, encode: broken}", "decode-only", 2.0),
        ("stageOrder: prefill-first, deciders: {encode: broken}", "prefill-decode", 1.0),
    ],
)
def test_a_decider_that_fails_leaves_its_stage_out(
    parameters: str, decision: str, count: float, caplog: pytest.LogCaptureFixture
) -> None:
    text = config(parameters).replace("- type: queue-scorer", "- type: queue-scorer\n- type: broken", 1)
    made = assemble(text, types=[Broken])
    candidates = pool(made, "decode", "prefill", "encode")
    made.schedule(request(), candidates)
    assert totals(made) == {decision: 1.0}
    assert reasons(made) == {"decider-failed": count}
    assert "broken failed: no idea" in caplog.text
    made["broken"].error = epp.ServiceUnavailable("not now")  # type: ignore[attr-defined]
    with pytest.raises(epp.ServiceUnavailable):
        made.schedule(request(), candidates)


def test_both_servers_are_counted_and_learnt_under_any_profile_names() -> None:
    text = """
    plugins:
    - type: disagg-profile-handler
      parameters:
        profiles: {decode: answer, prefill: read}
        deciders: {prefill: prefix-based-pd-decider}
    - type: prefix-based-pd-decider
      parameters: {nonCachedTokens: 64}
    - {type: prefill-filter}
    - {type: decode-filter}
    - type: prefix-cache-scorer
    schedulingProfiles:
    - {name: answer, plugins: [{pluginRef: decode-filter}, {pluginRef: prefix-cache-scorer}]}
    - {name: read, plugins: [{pluginRef: prefill-filter}, {pluginRef: prefix-cache-scorer}]}
    """
    made = assemble(text)
    assert warnings(made) == []
    candidates = pool(made, "decode", "prefill", "prefill")
    asked = request("Tell me a story. " * 100)
    first = made.schedule(asked, candidates)
    reader = first.headers["x-prefiller-host-port"]
    row = made.table.row_of(reader)
    columns = made.table.columns
    tokens = asked.input_tokens
    assert [columns["inflight_requests"][0], columns["inflight_requests"][row]] == [1.0, 1.0]
    assert [columns["inflight_tokens"][0], columns["inflight_tokens"][row]] == [tokens, tokens]

    producer, answer = made["inflight-load-producer"], epp.InferenceResponse()
    producer.on_first_chunk(asked, answer)  # the prompt has been read: the prefill server is done
    assert columns["inflight_requests"][:3].tolist() == [1.0, 0.0, 0.0]
    assert columns["inflight_tokens"][:3].tolist() == [0.0, 0.0, 0.0]
    producer.on_response_end(asked, answer)
    assert columns["inflight_requests"][:3].tolist() == [0.0, 0.0, 0.0]

    again = request("Tell me a story. " * 100)
    second = made.schedule(again, made.table.all(1000.0))
    match = epp.prefix_match(again, made.table.all(1000.0), epp.ANY_PRODUCER)
    assert match is None  # a view of its own; the candidates of the decision have it:
    match = epp.prefix_match(again, second.target.candidates, epp.ANY_PRODUCER)
    assert match is not None
    assert match.blocks[0] == match.total_blocks
    assert second.headers == {}  # all of it is cached by the decode server
    assert totals(made) == {"prefill-decode": 1.0, "decode-only": 1.0}
    index = made["approx-prefix-cache-producer"].dump_state()
    assert sorted(index["endpoints"].values()) == [0, match.total_blocks, match.total_blocks]


def test_the_precise_producer_is_read_when_it_is_the_one() -> None:
    text = """
    plugins:
    - type: disagg-profile-handler
      parameters: {deciders: {prefill: prefix-based-pd-decider}}
    - type: prefix-based-pd-decider
      parameters: {nonCachedTokens: 64}
    - type: precise-prefix-cache-producer
    - {type: prefill-filter}
    - {type: decode-filter}
    - type: prefix-cache-scorer
      parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
    schedulingProfiles:
    - {name: decode, plugins: [{pluginRef: decode-filter}, {pluginRef: prefix-cache-scorer}]}
    - {name: prefill, plugins: [{pluginRef: prefill-filter}, {pluginRef: prefix-cache-scorer}]}
    """
    made = assemble(text)
    assert warnings(made) == []
    assert "approx-prefix-cache-producer" not in made.assembly.plugins.by_name
    order = [producer.name for producer in made.assembly.plugins.producers]
    assert order.index("precise-prefix-cache-producer") < order.index("inflight-load-producer")

    ambiguous = text.replace(
        "- type: prefix-cache-scorer\n      parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}",
        "- type: prefix-cache-scorer",
    )
    with pytest.raises(epp.ConfigError) as refused:
        assemble(ambiguous)
    assert "precise-prefix-cache-producer and approx-prefix-cache-producer" in str(refused.value)
    assert "prefixMatchInfoProducerName" in str(refused.value)
    named = ambiguous.replace(
        "nonCachedTokens: 64", "nonCachedTokens: 64, prefixMatchInfoProducerName: precise-prefix-cache-producer"
    )
    assert assemble(named).assembly.profiles


@pytest.mark.parametrize(
    ("parameters", "profiles", "says"),
    [
        ("stageOrder: sideways", PROFILES, "stageOrder 'sideways' is neither decode-first nor prefill-first"),
        (
            f"stageOrder: prefill-first, {PREFILL}",
            PROFILES,
            "deciders.prefill: with stageOrder prefill-first nobody is asked",
        ),
        ("profiles: {prefill: decode}", PROFILES, "must be three different profiles"),
        ("deciders: {prefill: nobody}", PROFILES, "refers to a plugin named `nobody`, which there is not"),
        ("deciders: {prefill: queue-scorer}", PROFILES, "queue-scorer (type queue-scorer) decides nothing"),
        ("deciders: {prefil: x}", PROFILES, "unknown field `prefil` (did you mean `prefill`?)"),
        ("profiles: {decode: main}", PROFILES, "there is no scheduling profile `main` for the stage decode"),
        (f"profiles: {{prefill: main}}, {PREFILL}", PROFILES, "no scheduling profile `main` for the stage prefill"),
        (f"profiles: {{encode: main}}, {BOTH}", PROFILES, "no scheduling profile `main` for the stage encode"),
        (
            f"decodeProfile: decode, {PREFILL}",
            PROFILES,
            "decodeProfile: the former flat parameters do not go together with profiles and deciders",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_start(parameters: str, profiles: str, says: str) -> None:
    with pytest.raises(epp.ConfigError) as refused:
        assemble(config(parameters, profiles))
    assert says in str(refused.value)
    assert "plugins[0]" in str(refused.value)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            "",
            [
                "disagg-profile-handler never runs the profile `prefill`: name a decider as `deciders.prefill`",
                "disagg-profile-handler never runs the profile `encode`: name a decider as `deciders.encode`",
                "always-disagg-pd-decider is never used: name it in the `deciders` of the profile handler",
                "always-disagg-multimodal-decider is never used: name it in the `deciders` of the profile handler",
            ],
        ),
        (BOTH, []),
        (
            "stageOrder: prefill-first, profiles: {prefill: absent}, "
            "deciders: {encode: always-disagg-multimodal-decider}",
            [
                "disagg-profile-handler begins with prefill, but there is no profile `absent`: decode only",
                "disagg-profile-handler never runs the profile `prefill`",
                "always-disagg-pd-decider is never used: name it in the `deciders` of the profile handler",
            ],
        ),
    ],
)
def test_what_has_no_effect_is_said_at_start(parameters: str, says: Sequence[str]) -> None:
    told = "\n".join(assemble(config(parameters)).assembly.warnings)
    for line in says:
        assert line in told
    assert told.count("never") + told.count("begins with") == len(says)


def test_former_parameters_work_and_are_said(caplog: pytest.LogCaptureFixture) -> None:
    decider = plugin(AlwaysDisaggPDDecider)
    with caplog.at_level(logging.WARNING):
        handler = plugin(
            DisaggProfileHandler,
            {
                "decodeProfile": "d",
                "prefillProfile": "p",
                "encodeProfile": "e",
                "deciderPluginName": "always",
                "encodeDeciderPluginName": "always",
                "primaryPort": 8000,
                "prefixPluginName": "x",
            },
            others={"always": decider},
        )
    stages = handler.stages
    assert (stages.decode, stages.prefill, stages.encode) == ("d", "p", "e")
    assert (stages.prefill_decider, stages.encode_decider) == ("always", "always")
    assert "parameter decodeProfile is deprecated, use profiles.decode" in caplog.text
    assert "parameter deciderPluginName is deprecated, use deciders.prefill" in caplog.text
    assert "parameter primaryPort has no effect" in caplog.text
    assert "parameter prefixPluginName has no effect" in caplog.text
    assert handler.dump_state() == {
        "stageOrder": "decode-first",
        "profiles": {"decode": "d", "prefill": "p", "encode": "e"},
        "deciders": {"prefill": "always", "encode": "always"},
    }


def test_spans(tracer: OpenTelemetryTracer, exported: InMemorySpanExporter) -> None:
    made = assemble(config(BOTH))
    asked: Any = with_image()
    asked.span = tracer.request({})
    made.schedule(asked, pool(made, "decode", "prefill", "encode"))
    asked.span.end()
    spans = exported.get_finished_spans()
    picks = [dict(span.attributes or {}) for span in spans if span.name == "pick_disagg_profile"]
    assert [attributes["llm_d.epp.profile_handler.decision"] for attributes in picks] == [
        "run_decode",
        "run_encode_prefill",
        "complete",
    ]
    (prepared,) = [dict(span.attributes or {}) for span in spans if span.name == "prepare_disaggregation"]
    assert prepared == {
        "llm_d.epp.pd.disaggregation_used": True,
        "llm_d.epp.encode.disaggregation_used": True,
        "llm_d.epp.pd.prefill_pod_address": "10.0.0.2",
        "llm_d.epp.pd.prefill_pod_port": "8000",
        "llm_d.epp.encode.endpoints": "10.0.0.3:8000",
    }
