"""What a configuration means beyond what it says, filled in step by step.

Order: (1) scheduling, (2) flow control, (3) parsers, (4) saturation detector, (5) data layer. The sixth step, missing
data producers, needs the built plugins and is done by `epp.registry`.

To the data layer belongs in-flight accounting: llm-d-router only has it where a plugin reads it; here every endpoint's
requests and tokens in flight are always known, to plugins and to metrics, unless `dataLayer.injectDefaults` is false.

Wherever a step needs a plugin of some type, the first one of that type in the file is used, and only when there is
none it is added under its type as name. llm-d-router leaves two choices to the order of a hash map: which declared
picker a profile without one gets, and which of several plugins of one type is used. Here it is always the first in
the file.
"""

from __future__ import annotations

import copy

from epp.config.roles import Role, Roles
from epp.config.schema import (
    EndpointPickerConfig,
    FlowControlSpec,
    PluginRef,
    PluginSpec,
    ProfilePlugin,
    ProfileSpec,
    SourceSpec,
)

DEFAULT_HANDLER = "single-profile-handler"
DEFAULT_PICKER = "max-score-picker"
DEFAULT_PARSERS = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
DEFAULT_DETECTOR = "utilization-detector"
DEFAULT_SOURCE = "metrics-data-source"
DEFAULT_EXTRACTOR = "core-metrics-extractor"
DEFAULT_INFLIGHT = "inflight-load-producer"
DEFAULT_FLOW_CONTROL = ("fcfs-ordering-policy", "global-strict-fairness-policy", "static-usage-limit-policy")

PROFILE_ROLES = frozenset({Role.FILTER, Role.SCORER, Role.PICKER})
"""What can be listed in a profile."""


def apply_defaults(
    config: EndpointPickerConfig, roles: Roles, known: frozenset[str] = frozenset()
) -> EndpointPickerConfig:
    """A completed copy. `known` are the plugin types there are: policies and in-flight accounting come with them."""
    completed = copy.deepcopy(config)
    filler = _Filler(completed, roles)
    filler.scheduling()
    filler.flow_control(known)
    filler.parsers()
    filler.saturation_detector()
    filler.data_layer()
    filler.inflight_accounting(known)
    return completed


class _Filler:
    def __init__(self, config: EndpointPickerConfig, roles: Roles) -> None:
        self._config = config
        self._roles = roles

    def scheduling(self) -> None:
        config = self._config
        if not config.scheduling_profiles:
            config.scheduling_profiles = [
                ProfileSpec(
                    name="default",
                    plugins=[
                        ProfilePlugin(plugin_ref=plugin.name)
                        for plugin in config.plugins
                        if self._roles(plugin.type) & PROFILE_ROLES
                    ],
                )
            ]
        handlers = [plugin for plugin in config.plugins if Role.PROFILE_HANDLER in self._roles(plugin.type)]
        if not handlers and len(config.scheduling_profiles) == 1:
            self._named(DEFAULT_HANDLER)
        for profile in config.scheduling_profiles:
            if not any(self._is(entry.plugin_ref, Role.PICKER) for entry in profile.plugins):
                profile.plugins.append(ProfilePlugin(plugin_ref=self._picker()))

    def flow_control(self, known: frozenset[str]) -> None:
        if not self._config.gate("flowControl"):
            return
        for kind in DEFAULT_FLOW_CONTROL:
            if kind in known:
                self._named(kind)

    def parsers(self) -> None:
        handler = self._config.request_handler
        if handler.parsers:
            return
        for kind in DEFAULT_PARSERS:
            handler.parsers.append(PluginRef(plugin_ref=self._named(kind)))

    def saturation_detector(self) -> None:
        config = self._config
        if config.flow_control is None:
            config.flow_control = FlowControlSpec()
        if config.flow_control.saturation_detector is None:
            config.flow_control.saturation_detector = PluginRef(plugin_ref=self._named(DEFAULT_DETECTOR))

    def data_layer(self) -> None:
        layer = self._config.data_layer
        if not layer.inject_defaults or any(
            self._type(source.plugin_ref) == DEFAULT_SOURCE for source in layer.sources
        ):
            return
        layer.sources.append(
            SourceSpec(
                plugin_ref=self._named(DEFAULT_SOURCE),
                extractors=[PluginRef(plugin_ref=self._named(DEFAULT_EXTRACTOR))],
            )
        )

    def inflight_accounting(self, known: frozenset[str]) -> None:
        if self._config.data_layer.inject_defaults and DEFAULT_INFLIGHT in known:
            self._named(DEFAULT_INFLIGHT)

    def _named(self, kind: str) -> str:
        """The name of the first plugin of a type; it is added when there is none."""
        for plugin in self._config.plugins:
            if plugin.type == kind:
                return plugin.name
        self._config.plugins.append(PluginSpec(name=kind, type=kind))
        return kind

    def _picker(self) -> str:
        declared = [plugin.name for plugin in self._config.plugins if Role.PICKER in self._roles(plugin.type)]
        return declared[0] if declared else self._named(DEFAULT_PICKER)

    def _type(self, name: str) -> str:
        plugin = self._config.find(name)
        return plugin.type if plugin is not None else ""

    def _is(self, name: str, role: Role) -> bool:
        return role in self._roles(self._type(name))
