"""What is filled in, in which order, and how one can tell it from what the file says."""

from __future__ import annotations

from epp.config import EndpointPickerConfig, Role, apply_defaults, default_config, load

ROLES = {
    "queue-scorer": {Role.SCORER},
    "kv-cache-utilization-scorer": {Role.SCORER},
    "prefix-cache-scorer": {Role.SCORER},
    "decode-filter": {Role.FILTER},
    "random-picker": {Role.PICKER},
    "weighted-random-picker": {Role.PICKER},
    "max-score-picker": {Role.PICKER},
    "single-profile-handler": {Role.PROFILE_HANDLER},
    "header-profile-handler": {Role.PROFILE_HANDLER},
    "metrics-data-source": {Role.DATA_SOURCE},
    "core-metrics-extractor": {Role.EXTRACTOR},
    "openai-parser": {Role.PARSER},
    "utilization-detector": {Role.SATURATION_DETECTOR, Role.FILTER},
}


def roles(kind: str) -> frozenset[Role]:
    return frozenset(ROLES.get(kind, ()))


def completed(text: str, known: frozenset[str] = frozenset()) -> EndpointPickerConfig:
    head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
    return apply_defaults(load(head + text).config, roles, known)


def profile(config: EndpointPickerConfig, index: int = 0) -> list[str]:
    return [entry.plugin_ref for entry in config.scheduling_profiles[index].plugins]


def test_no_configuration_at_all() -> None:
    config = apply_defaults(default_config(), roles)
    assert [(e.plugin_ref, e.weight) for e in config.scheduling_profiles[0].plugins] == [
        ("queue-scorer", 2),
        ("kv-cache-utilization-scorer", 2),
        ("prefix-cache-scorer", 3),
        ("max-score-picker", None),
    ]
    assert [plugin.type for plugin in config.plugins] == [
        "queue-scorer",
        "kv-cache-utilization-scorer",
        "prefix-cache-scorer",
        "single-profile-handler",
        "max-score-picker",
        "openai-parser",
        "anthropic-parser",
        "vllmhttp-parser",
        "passthrough-parser",
        "utilization-detector",
        "metrics-data-source",
        "core-metrics-extractor",
    ]
    assert [(s.plugin_ref, [e.plugin_ref for e in s.extractors]) for s in config.data_layer.sources] == [
        ("metrics-data-source", ["core-metrics-extractor"])
    ]
    assert config.is_default("plugins")


def test_the_original_is_not_touched() -> None:
    original = default_config()
    apply_defaults(original, roles)
    assert len(original.plugins) == 3


def test_plugins_without_profiles_go_into_one() -> None:
    config = completed("plugins: [{type: decode-filter}, {name: q, type: queue-scorer}, {type: metrics-data-source}]")
    assert config.scheduling_profiles[0].name == "default"
    assert profile(config) == ["decode-filter", "q", "max-score-picker"]
    assert config.is_default("schedulingProfiles[0]")
    assert not config.is_default("plugins[0]")
    assert config.is_default("plugins[3]")


def test_a_declared_picker_is_taken_the_first_of_the_file() -> None:
    config = completed(
        "plugins: [{type: random-picker}, {type: weighted-random-picker}]\n"
        "schedulingProfiles: [{name: a, plugins: []}, {name: b, plugins: [{pluginRef: weighted-random-picker}]}]"
    )
    assert profile(config, 0) == ["random-picker"]
    assert profile(config, 1) == ["weighted-random-picker"]
    assert config.find("max-score-picker") is None


def test_a_handler_is_added_to_one_profile_only() -> None:
    two = "schedulingProfiles: [{name: a, plugins: []}, {name: b, plugins: []}]"
    assert completed(two).find("single-profile-handler") is None
    assert completed("plugins: [{type: header-profile-handler}]").find("single-profile-handler") is None
    assert completed("").find("single-profile-handler") is not None


def test_configured_plugins_are_used_before_new_ones_are_made() -> None:
    config = completed(
        "plugins: [{name: p, type: openai-parser}, {name: u, type: utilization-detector}, "
        "{name: c, type: core-metrics-extractor}]"
    )
    assert [r.plugin_ref for r in config.request_handler.parsers] == [
        "p",
        "anthropic-parser",
        "vllmhttp-parser",
        "passthrough-parser",
    ]
    assert config.flow_control is not None
    assert config.flow_control.saturation_detector is not None
    assert config.flow_control.saturation_detector.plugin_ref == "u"
    assert config.data_layer.sources[0].extractors[0].plugin_ref == "c"


def test_explicit_lists_are_final() -> None:
    config = completed(
        "plugins: [{name: p, type: openai-parser}]\nrequestHandler: {parsers: [{pluginRef: p}]}\n"
        "flowControl: {saturationDetector: {pluginRef: mine}}"
    )
    assert [r.plugin_ref for r in config.request_handler.parsers] == ["p"]
    assert config.find("utilization-detector") is None


def test_the_data_layer_can_be_left_alone() -> None:
    assert completed("dataLayer: {injectDefaults: false}").data_layer.sources == []
    mine = "plugins: [{name: m, type: metrics-data-source}]\ndataLayer: {sources: [{pluginRef: m}]}"
    assert [source.plugin_ref for source in completed(mine).data_layer.sources] == ["m"]
    other = completed("dataLayer: {sources: [{pluginRef: x}]}")
    assert [source.plugin_ref for source in other.data_layer.sources] == ["x", "metrics-data-source"]
    assert other.is_default("dataLayer.sources[1]")
    assert not other.is_default("dataLayer.sources[0]")


def test_what_is_in_flight_is_always_counted() -> None:
    known = frozenset({"inflight-load-producer"})
    config = completed("plugins: [{type: queue-scorer}]", known)
    assert config.plugins[-1].name == "inflight-load-producer"
    assert config.is_default(f"plugins[{len(config.plugins) - 1}]")
    mine = completed("plugins: [{name: mine, type: inflight-load-producer}]", known)
    assert [plugin.name for plugin in mine.plugins if plugin.type == "inflight-load-producer"] == ["mine"]
    assert completed("dataLayer: {injectDefaults: false}", known).find("inflight-load-producer") is None
    assert completed("").find("inflight-load-producer") is None


def test_flow_control_policies_come_with_the_gate() -> None:
    known = frozenset({"fcfs-ordering-policy"})
    assert completed("featureGates: [flowControl]", known).find("fcfs-ordering-policy") is not None
    assert completed("featureGates: [flowControl]").find("fcfs-ordering-policy") is None
    assert completed("", known).find("fcfs-ordering-policy") is None
