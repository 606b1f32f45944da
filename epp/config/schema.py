"""The configuration file as structs: snake_case here, camelCase in the file, unknown keys refused."""

from __future__ import annotations

from typing import Any

import msgspec

from epp.config.document import Document
from epp.config.duration import Duration
from epp.config.quantity import Quantity

API_VERSION = "llm-d.ai/v1alpha1"
API_VERSIONS = (API_VERSION, "llm-d.ai/v1")
"""Taken without a word. They differ in where some settings stand (`places`)."""

KIND = "EndpointPickerConfig"

FEATURE_GATES: dict[str, bool] = {"flowControl": False, "haPopulateNonLeaderDatastore": True}
"""The gates there are, with their defaults."""


class Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A mapping of the file."""


class PluginSpec(Section):
    """A plugin to build. `name` defaults to `type`; `parameters` are checked by the plugin's own `Params`."""

    name: str = ""
    type: str = ""
    parameters: dict[str, Any] = {}


class PluginRef(Section):
    """A mention of a plugin by its name."""

    plugin_ref: str = ""


class ProfilePlugin(Section):
    """A plugin's place in a profile. `weight` counts for scorers only; None is 1.0, upstream's default."""

    plugin_ref: str = ""
    weight: float | None = None


class ProfileSpec(Section):
    """One scheduling profile; filters and scorers run in the order given."""

    name: str = ""
    plugins: list[ProfilePlugin] = []


class SourceSpec(Section):
    """A data source and who reads what it fetched."""

    plugin_ref: str = ""
    extractors: list[PluginRef] = []


class DataLayerSpec(Section):
    """Where knowledge of endpoints comes from.

    `inject_defaults` adds `metrics-data-source` with `core-metrics-extractor` unless a source of that type is given.
    `discovery` None: endpoints come from Kubernetes. `cross_replica_sync_interval` and `cross_replica_publish_timeout`
    in seconds.
    """

    inject_defaults: bool = True
    sources: list[SourceSpec] = []
    discovery: PluginRef | None = None
    peer_discovery: PluginRef | None = None
    cross_replica_syncer_plugin_ref: str = ""
    cross_replica_sync_interval: Duration = Duration(0.2)
    cross_replica_publish_timeout: Duration = Duration(1.0)


class RequestHandlerSpec(Section):
    """Parsers in order of preference; empty: the default list. `propagate_priority` has no effect (yet)."""

    parsers: list[PluginRef] = []
    propagate_priority: bool = False


class PriorityBandSpec(Section):
    """Limits and policies of one priority. 0: the default (1G bytes, 5000 requests); negative is refused.

    `default_request_ttl` None: that of `flowControl`.
    """

    priority: int = 0
    max_bytes: Quantity = Quantity(0)
    max_requests: Quantity = Quantity(0)
    default_request_ttl: Duration | None = msgspec.field(name="defaultRequestTTL", default=None)
    fairness_policy_ref: str = ""
    ordering_policy_ref: str = ""


class FlowControlSpec(Section):
    """Queues between admission and dispatch, behind the gate `flowControl`.

    `max_bytes` and `max_requests` over all bands, 0: unlimited. `default_request_ttl` in seconds, 0: no limit;
    `no_endpoint_request_ttl` None: the same. `saturation_detector` is used with and without the gate.
    """

    max_bytes: Quantity = Quantity(0)
    max_requests: Quantity = Quantity(0)
    default_request_ttl: Duration = msgspec.field(name="defaultRequestTTL", default=Duration(60.0))
    no_endpoint_request_ttl: Duration | None = msgspec.field(name="noEndpointRequestTTL", default=None)
    default_priority_band: PriorityBandSpec | None = None
    default_negative_priority_band: PriorityBandSpec | None = None
    priority_bands: list[PriorityBandSpec] = []
    usage_limit_policy_plugin_ref: str = ""
    saturation_detector: PluginRef | None = None
    enable_eviction: bool = False


class EndpointPickerConfig(msgspec.Struct, kw_only=True):
    """A whole configuration.

    `document` tells the line of every path that is in the file; what it does not know was filled in (`is_default`).
    `flow_control` None: the file has no such section.
    """

    api_version: str = API_VERSION
    kind: str = KIND
    feature_gates: dict[str, bool] = {}
    plugins: list[PluginSpec] = []
    scheduling_profiles: list[ProfileSpec] = []
    data_layer: DataLayerSpec = msgspec.field(default_factory=DataLayerSpec)
    request_handler: RequestHandlerSpec = msgspec.field(default_factory=RequestHandlerSpec)
    flow_control: FlowControlSpec | None = None
    document: Document = msgspec.field(default_factory=lambda: Document({}))

    def gate(self, name: str) -> bool:
        """Whether a feature gate is on."""
        return self.feature_gates.get(name, FEATURE_GATES[name])

    def is_default(self, path: str) -> bool:
        """Whether what is at `plugins[3]` or `dataLayer.injectDefaults` is not from the file."""
        return path not in self.document.lines

    def find(self, name: str) -> PluginSpec | None:
        """The plugin with this name."""
        return next((plugin for plugin in self.plugins if plugin.name == name), None)
