"""From text to a configuration: versions, gates, strict keys, and what used to be called otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from epp.config import Duration, EndpointPickerConfig, LocatedError, default_config, load, load_file

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def config(text: str) -> EndpointPickerConfig:
    loaded = load(HEAD + text, "f.yaml")
    assert loaded.warnings == ()
    return loaded.config


def test_every_field() -> None:
    made = config(
        """
featureGates: [flowControl, haPopulateNonLeaderDatastore=false]
plugins:
- type: queue-scorer
- name: mine
  type: prefix-cache-scorer
  parameters: {matchLengthWeight: 0.5}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: queue-scorer, weight: 2}, {pluginRef: mine}]
dataLayer:
  injectDefaults: false
  sources: [{pluginRef: a, extractors: [{pluginRef: b}]}]
  discovery: {pluginRef: c}
  peerDiscovery: {pluginRef: d}
  crossReplicaSyncerPluginRef: e
  crossReplicaSyncInterval: 100ms
requestHandler: {parsers: [{pluginRef: p}]}
flowControl:
  maxBytes: 10Gi
  maxRequests: 1k
  defaultRequestTTL: 30s
  noEndpointRequestTTL: 0s
  defaultPriorityBand: {maxBytes: 1G, maxRequests: 5000, fairnessPolicyRef: f, orderingPolicyRef: o}
  defaultNegativePriorityBand: {maxRequests: 10}
  priorityBands: [{priority: 100}, {priority: -10, maxRequests: 50}]
  usageLimitPolicyPluginRef: u
  saturationDetector: {pluginRef: s}
  enableEviction: true
"""
    )
    assert made.gate("flowControl") is True
    assert made.gate("haPopulateNonLeaderDatastore") is False
    assert [(p.name, p.type, p.parameters) for p in made.plugins] == [
        ("queue-scorer", "queue-scorer", {}),
        ("mine", "prefix-cache-scorer", {"matchLengthWeight": 0.5}),
    ]
    assert [(e.plugin_ref, e.weight) for e in made.scheduling_profiles[0].plugins] == [
        ("queue-scorer", 2),
        ("mine", None),
    ]
    layer = made.data_layer
    assert (layer.inject_defaults, layer.cross_replica_sync_interval) == (False, 0.1)
    assert layer.discovery is not None
    assert layer.discovery.plugin_ref == "c"
    assert layer.sources[0].extractors[0].plugin_ref == "b"
    flow = made.flow_control
    assert flow is not None
    assert [int(flow.max_bytes), int(flow.max_requests), float(flow.default_request_ttl)] == [10 * 2**30, 1000, 30.0]
    assert flow.no_endpoint_request_ttl == Duration(0)
    assert flow.priority_bands[1].priority == -10
    assert flow.enable_eviction
    assert made.find("mine") is made.plugins[1]
    assert made.find("nobody") is None


def test_gates_have_defaults() -> None:
    made = config("")
    assert made.gate("flowControl") is False
    assert made.gate("haPopulateNonLeaderDatastore") is True
    assert config("featureGates: [flowControl=false]").gate("flowControl") is False


@pytest.mark.parametrize("discovery", ["{pluginRef: d}", "{endpoints: {pluginRef: d}}"])
def test_both_spellings_of_discovery(discovery: str) -> None:
    made = config(f"dataLayer: {{discovery: {discovery}}}")
    assert made.data_layer.discovery is not None
    assert made.data_layer.discovery.plugin_ref == "d"
    assert not made.is_default("dataLayer.discovery.pluginRef")


NEWER = """
apiVersion: llm-d.ai/v1
kind: EndpointPickerConfig
dataLayer:
  discovery: {endpoints: {pluginRef: d}, peers: {pluginRef: p}}
  crossReplica: {syncerPluginRef: s, syncInterval: 500ms, publishTimeout: 2s}
requestHandler: {propagatePriority: true}
flowControl: {priorityBands: [{priority: 1, defaultRequestTTL: 5s}]}
"""
OLDER = (
    HEAD
    + """
dataLayer:
  discovery: {pluginRef: d}
  peerDiscovery: {pluginRef: p}
  crossReplicaSyncerPluginRef: s
  crossReplicaSyncInterval: 500ms
  crossReplicaPublishTimeout: 2s
requestHandler: {propagatePriority: true}
flowControl: {priorityBands: [{priority: 1, defaultRequestTTL: 5s}]}
"""
)


def test_both_api_versions_mean_the_same() -> None:
    newer, older = load(NEWER, "f.yaml"), load(OLDER, "f.yaml")
    assert newer.config.data_layer == older.config.data_layer
    assert newer.config.request_handler == older.config.request_handler
    assert newer.config.flow_control == older.config.flow_control
    assert len(newer.warnings) == len(older.warnings) == 1  # flowControl without its gate
    assert newer.config.data_layer.cross_replica_publish_timeout == 2.0
    assert newer.config.document.line("dataLayer.peerDiscovery") == 5
    assert newer.config.document.line("dataLayer.crossReplicaSyncInterval") == 6
    only_peers = config("dataLayer: {discovery: {peers: {pluginRef: p}}}").data_layer
    assert (only_peers.discovery, only_peers.peer_discovery is not None) == (None, True)
    both = config("dataLayer: {discovery: {pluginRef: d, peers: {pluginRef: p}}}").data_layer
    assert both.discovery is not None
    assert both.discovery.plugin_ref == "d"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            HEAD + "dataLayer: {peerDiscovery: {pluginRef: a}, discovery: {peers: {pluginRef: b}}}",
            "f.yaml:3: dataLayer.discovery.peers: `peerDiscovery` is given too",
        ),
        (
            HEAD + "dataLayer:\n  crossReplicaSyncInterval: 1s\n  crossReplica: {syncInterval: 2s}",
            "f.yaml:5: dataLayer.crossReplica.syncInterval: `crossReplicaSyncInterval` is given too",
        ),
        (
            HEAD + "dataLayer: {crossReplica: {interval: 2s}}",
            "f.yaml:3: dataLayer.crossReplica.interval: unknown field `interval` (did you mean `syncInterval`?)",
        ),
        (HEAD + "dataLayer: {crossReplica: 5}", "f.yaml:3: dataLayer.crossReplica: unknown field"),
        ("kind: Pod", "f.yaml:1: apiVersion: `apiVersion` is missing"),
        ("kind: EndpointPickerConfig\napiVersion: v1", "f.yaml:2: apiVersion: apiVersion 'v1' is not known (use `api"),
        ("apiVersion: llm-d.ai/v1alpha1", "f.yaml:1: kind: `kind` is missing"),
        ("apiVersion: llm-d.ai/v1alpha1\nkind: Pod", "f.yaml:2: kind: kind 'Pod' is not known"),
        (HEAD + "plugin: []", "f.yaml:3: plugin: unknown field `plugin` (did you mean `plugins`?)"),
        (HEAD + "plugins:\n- typ: a", "f.yaml:4: plugins[0].typ: unknown field `typ` (did you mean `type`?)"),
        (HEAD + "plugins: {a: b}", "f.yaml:3: plugins: expected `array`, got `object`"),
        (
            HEAD + "schedulingProfiles:\n- name: d\n  plugins:\n  - pluginRef: a\n    wieght: 1",
            "f.yaml:7: schedulingProfiles[0].plugins[0].wieght: unknown field `wieght` (did you mean `weight`?)",
        ),
        (
            HEAD + "featureGates: [flowcontrol]",
            "f.yaml:3: featureGates[0]: unknown feature gate `flowcontrol` (did you mean `flowControl`?)",
        ),
        (HEAD + "featureGates: [flowControl=maybe]", "f.yaml:3: featureGates[0]: malformed feature gate"),
        (HEAD + "featureGates: {flowControl: true}", "f.yaml:3: featureGates: expected `array`"),
        (HEAD + "flowControl: {maxBytes: lots}", "f.yaml:3: flowControl.maxBytes: expected a quantity"),
        (HEAD + "flowControl: {defaultRequestTTL: 5}", "f.yaml:3: flowControl.defaultRequestTTL: expected a duration"),
        (HEAD + "flowControl: {defaultRequestTtl: 5s}", "f.yaml:3: flowControl.defaultRequestTtl: unknown field"),
        (
            HEAD + "dataLayer: {discovery: {endpoints: {pluginRef: a}, pluginRef: b}}",
            "f.yaml:3: dataLayer.discovery.endpoints: ",
        ),
        (
            HEAD + "dataLayer: {discovery: {endpoints: {pluginRef: a}, endpoint: b}}",
            "f.yaml:3: dataLayer.discovery.endpoint: unknown",
        ),
        (HEAD + "requestHandler: 1\nparser: {pluginRef: x}", "f.yaml:3: requestHandler: expected `object`"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(LocatedError) as error:
        load(text, "f.yaml")
    assert str(error.value).startswith(said)


def test_the_deprecated_group_is_taken_with_a_warning() -> None:
    loaded = load("apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig", "f.yaml")
    assert loaded.warnings == (
        "f.yaml:1: apiVersion: inference.networking.x-k8s.io/v1alpha1 is deprecated: use llm-d.ai/v1alpha1",
    )


def test_former_places_are_moved_with_a_warning() -> None:
    loaded = load(HEAD + "parser: {pluginRef: p}\nsaturationDetector: {pluginRef: s}", "f.yaml")
    assert [p.plugin_ref for p in loaded.config.request_handler.parsers] == ["p"]
    assert loaded.config.flow_control is not None
    assert loaded.config.flow_control.saturation_detector is not None
    assert loaded.config.flow_control.saturation_detector.plugin_ref == "s"
    assert loaded.config.document.line("requestHandler.parsers[0]") == 3
    assert [warning.split(": deprecated")[0] for warning in loaded.warnings] == [
        "f.yaml:3: parser",
        "f.yaml:4: saturationDetector",
    ]


def test_the_new_place_wins() -> None:
    loaded = load(
        HEAD
        + "parser: {pluginRef: old}\nsaturationDetector: {pluginRef: old}\n"
        + "requestHandler: {parsers: [{pluginRef: new}]}\nflowControl: {saturationDetector: {pluginRef: new}}",
        "f.yaml",
    )
    assert [p.plugin_ref for p in loaded.config.request_handler.parsers] == ["new"]
    assert loaded.config.flow_control is not None
    assert loaded.config.flow_control.saturation_detector is not None
    assert loaded.config.flow_control.saturation_detector.plugin_ref == "new"
    assert len(loaded.warnings) == 2


def test_flow_control_without_its_gate_warns() -> None:
    assert (
        "f.yaml:3: flowControl: no effect while its gate is off"
        in load(HEAD + "flowControl: {maxRequests: 5}", "f.yaml").warnings[0]
    )
    assert load(HEAD + "flowControl: {saturationDetector: {pluginRef: s}}").warnings == ()
    assert load(HEAD + "featureGates: [flowControl]\nflowControl: {maxRequests: 5}").warnings == ()


@pytest.mark.parametrize("text", ["", " \n"])
def test_no_text_at_all_is_the_default_configuration(text: str) -> None:
    made = load(text).config
    assert [plugin.type for plugin in made.plugins] == [plugin.type for plugin in default_config().plugins]
    assert made.is_default("plugins")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(HEAD + "plugins: 1")
    with pytest.raises(LocatedError, match=r"c\.yaml:3: plugins"):
        load_file(file)
    with pytest.raises(LocatedError, match="cannot read the configuration file"):
        load_file(tmp_path / "missing.yaml")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LocatedError, match="cannot read the configuration file"):
        load_file(file)
