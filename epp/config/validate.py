"""Whether the parts of a completed configuration fit together: names, references, roles, limits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from epp.config.defaults import DEFAULT_HANDLER, PROFILE_ROLES
from epp.config.document import child
from epp.config.errors import LocatedError, did_you_mean
from epp.config.roles import READERS, Role, Roles
from epp.config.schema import EndpointPickerConfig, FlowControlSpec, PluginSpec, PriorityBandSpec

_REFERENCED = {
    Role.PARSER: "requestHandler.parsers",
    Role.DATA_SOURCE: "dataLayer.sources",
    Role.ENDPOINT_SOURCE: "dataLayer.sources",
    Role.OBJECT_SOURCE: "dataLayer.sources",
    Role.EXTRACTOR: "the extractors of a dataLayer source",
    Role.OBJECT_EXTRACTOR: "the extractors of a dataLayer source",
    Role.DISCOVERY: "dataLayer.discovery",
    Role.FILTER: "a scheduling profile",
    Role.SCORER: "a scheduling profile",
    Role.PICKER: "a scheduling profile",
    Role.SATURATION_DETECTOR: "flowControl.saturationDetector",
}
_UNREFERENCED = (
    Role.PRODUCER,
    Role.ADMITTER,
    Role.PROFILE_HANDLER,
    Role.DECIDER,  # referred to by a handler's parameters, which only the handler can read
    Role.HOOKS,
    Role.ENDPOINT_EXTRACTOR,
)


def check_names(config: EndpointPickerConfig) -> None:
    """Every plugin has a type and a name of its own. Runs before defaults are filled in."""
    seen: dict[str, str] = {}
    for index, plugin in enumerate(config.plugins):
        path = child("plugins", index)
        if not plugin.type:
            raise config.document.error("the plugin has no type", path=path, fix="add `type: ...`")
        if plugin.name in seen:
            raise config.document.error(
                f"the plugin name `{plugin.name}` is taken by {seen[plugin.name]}",
                path=path,
                fix="give one of them another `name`",
            )
        seen[plugin.name] = path


def validate(config: EndpointPickerConfig, roles: Roles) -> list[str]:
    """Raises at the first thing that is wrong; returns warnings about what has no effect."""
    check_names(config)
    return _Validator(config, roles).run()


class _Validator:
    def __init__(self, config: EndpointPickerConfig, roles: Roles) -> None:
        self._config = config
        self._roles = roles
        self._plugins = {plugin.name: plugin for plugin in config.plugins}
        self._used: set[str] = set()
        self._warnings: list[str] = []

    def run(self) -> list[str]:
        self._profiles()
        self._handler()
        self._data_layer()
        self._replicas()
        for index, reference in enumerate(self._config.request_handler.parsers):
            self._reference(reference.plugin_ref, f"requestHandler.parsers[{index}]", Role.PARSER)
        if self._config.flow_control is not None:
            self._flow_control(self._config.flow_control)
        self._unused()
        return self._warnings

    def _profiles(self) -> None:
        seen: set[str] = set()
        for index, profile in enumerate(self._config.scheduling_profiles):
            path = child("schedulingProfiles", index)
            if not profile.name:
                raise self._error("the profile has no name", path, "add `name: default`")
            if profile.name in seen:
                raise self._error(f"two profiles are named `{profile.name}`", path, "rename one of them")
            seen.add(profile.name)
            pickers: list[str] = []
            scorers = 0
            for position, entry in enumerate(profile.plugins):
                here = f"{path}.plugins[{position}]"
                plugin = self._reference(entry.plugin_ref, here, None)
                given = self._roles(plugin.type)
                scorers += Role.SCORER in given
                if Role.PICKER in given:
                    pickers.append(plugin.name)
                if len(pickers) > 1:
                    raise self._error(
                        f"profile {profile.name} has two pickers, {pickers[0]} and {pickers[1]}", here, "keep one"
                    )
                if entry.weight is not None and not math.isfinite(entry.weight):
                    raise self._error(f"weight {entry.weight} is not a number to add up", f"{here}.weight", "use 1.0")
                self._without_effect(plugin, given, entry.weight, here)
            if not scorers:
                self._warn(path, f"profile {profile.name} has no scorer: all its candidates are equally good")

    def _without_effect(self, plugin: PluginSpec, given: frozenset[Role], weight: float | None, path: str) -> None:
        if not given & PROFILE_ROLES:
            self._warn(path, f"{plugin.name} is no filter, scorer or picker: listing it in a profile has no effect")
        elif weight is not None and Role.SCORER not in given:
            self._warn(path, f"{plugin.name} is no scorer: its weight has no effect")

    def _handler(self) -> None:
        handlers = [plugin for plugin in self._config.plugins if Role.PROFILE_HANDLER in self._roles(plugin.type)]
        if not handlers:
            raise self._error(
                f"{len(self._config.scheduling_profiles)} profiles and no profile handler to choose among them",
                "plugins",
                "add one, for example `type: header-profile-handler`",
            )
        if len(handlers) > 1:
            raise self._error(
                f"two profile handlers, {handlers[0].name} and {handlers[1].name}",
                self._path_of(handlers[1]),
                "keep one",
            )
        if handlers[0].type == DEFAULT_HANDLER and len(self._config.scheduling_profiles) > 1:
            raise self._error(
                f"{DEFAULT_HANDLER} runs the only profile, but there are {len(self._config.scheduling_profiles)}",
                self._path_of(handlers[0]),
                "use a handler that chooses among profiles, or keep one profile",
            )

    def _data_layer(self) -> None:
        layer = self._config.data_layer
        for index, source in enumerate(layer.sources):
            path = child("dataLayer.sources", index)
            named = self._plugins.get(source.plugin_ref)
            told = self._roles(named.type) if named is not None else frozenset()
            kind = next((kind for kind in READERS if kind in told), Role.DATA_SOURCE)
            self._reference(source.plugin_ref, path, kind)
            for position, extractor in enumerate(source.extractors):
                self._reference(extractor.plugin_ref, f"{path}.extractors[{position}]", READERS[kind])
            if not source.extractors and kind is not Role.ENDPOINT_SOURCE:
                self._warn(path, f"nobody reads what {source.plugin_ref} fetches: add extractors")
        if layer.discovery is not None:
            self._reference(layer.discovery.plugin_ref, "dataLayer.discovery", Role.DISCOVERY)

    def _replicas(self) -> None:
        """What replicas would tell each other: checked, and without effect."""
        layer = self._config.data_layer
        for name, seconds in (
            ("crossReplicaSyncInterval", layer.cross_replica_sync_interval),
            ("crossReplicaPublishTimeout", layer.cross_replica_publish_timeout),
        ):
            if seconds < 0:
                raise self._error("is negative", f"dataLayer.{name}", "use a duration such as `200ms`")
        named = {
            "dataLayer.peerDiscovery": "" if layer.peer_discovery is None else layer.peer_discovery.plugin_ref,
            "dataLayer.crossReplicaSyncerPluginRef": layer.cross_replica_syncer_plugin_ref,
        }
        for path, name in named.items():
            if name:
                self._reference(name, path, None)
                self._warn(path, "no effect: replicas do not tell each other what they have in flight")
        if not self._config.gate("haPopulateNonLeaderDatastore"):
            self._warn(
                "featureGates", "haPopulateNonLeaderDatastore=false has no effect: a standby knows its endpoints"
            )
        if self._config.request_handler.propagate_priority:
            self._warn("requestHandler.propagatePriority", "no effect: the priority is not told to the model server")

    def _flow_control(self, flow: FlowControlSpec) -> None:
        path = "flowControl"
        bands: list[tuple[str, PriorityBandSpec | None]] = [
            (f"{path}.defaultPriorityBand", flow.default_priority_band),
            (f"{path}.defaultNegativePriorityBand", flow.default_negative_priority_band),
        ]
        bands += [(f"{path}.priorityBands[{index}]", band) for index, band in enumerate(flow.priority_bands)]
        self._not_negative(path, maxBytes=flow.max_bytes, maxRequests=flow.max_requests)
        self._not_negative(
            path, defaultRequestTTL=flow.default_request_ttl, noEndpointRequestTTL=flow.no_endpoint_request_ttl
        )
        seen: set[int] = set()
        for here, band in bands:
            if band is None:
                continue
            self._not_negative(
                here,
                maxBytes=band.max_bytes,
                maxRequests=band.max_requests,
                defaultRequestTTL=band.default_request_ttl,
            )
            self._policy(band.fairness_policy_ref, f"{here}.fairnessPolicyRef", "fairness policy")
            self._policy(band.ordering_policy_ref, f"{here}.orderingPolicyRef", "ordering policy", "an")
        for index, band in enumerate(flow.priority_bands):
            if band.priority in seen:
                raise self._error(
                    f"two bands have priority {band.priority}", f"{path}.priorityBands[{index}]", "merge them"
                )
            seen.add(band.priority)
        self._policy(flow.usage_limit_policy_plugin_ref, f"{path}.usageLimitPolicyPluginRef", "usage limit policy")
        if flow.saturation_detector is not None:
            self._reference(flow.saturation_detector.plugin_ref, f"{path}.saturationDetector", Role.SATURATION_DETECTOR)

    def _policy(self, name: str | None, path: str, what: str, article: str = "a") -> None:
        """Policies have no role of their own here; who has one is none."""
        if not name:
            return
        plugin = self._reference(name, path, None)
        given = self._roles(plugin.type)
        if given:
            raise self._error(
                f"{name} (type {plugin.type}) is {_listed(given)}, not {article} {what}",
                path,
                f"name {article} {what} here",
            )

    def _not_negative(self, path: str, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None and value < 0:
                raise self._error(f"{value} is negative", f"{path}.{name}", "use 0 for no limit")

    def _reference(self, name: str, path: str, role: Role | None) -> PluginSpec:
        """The plugin that is meant; it has to exist and to have the role."""
        if not name:
            raise self._error("`pluginRef` is missing", path, "name one of the plugins: `pluginRef: ...`")
        plugin = self._plugins.get(name)
        if plugin is None:
            raise self._error(
                f"there is no plugin named `{name}`", path, did_you_mean(name, self._plugins) or "add it to `plugins`"
            )
        given = self._roles(plugin.type)
        if role is not None and role not in given:
            raise self._error(
                f"{name} (type {plugin.type}) is {_listed(given)}, not a {role}", path, f"name a {role} here"
            )
        self._used.add(name)
        return plugin

    def _unused(self) -> None:
        for plugin in self._config.plugins:
            given = self._roles(plugin.type)
            if plugin.name in self._used or not given or any(role in given for role in _UNREFERENCED):
                continue
            places = dict.fromkeys(_REFERENCED[role] for role in Role if role in given)
            self._warn(self._path_of(plugin), f"{plugin.name} is never used: mention it in {' or '.join(places)}")

    def _path_of(self, plugin: PluginSpec) -> str:
        return child("plugins", self._config.plugins.index(plugin))

    def _error(self, message: str, path: str, fix: str) -> LocatedError:
        return self._config.document.error(message, path=path, fix=fix)

    def _warn(self, path: str, message: str) -> None:
        self._warnings.append(self._config.document.note(message, path))


def _listed(roles: Iterable[Role]) -> str:
    return " and ".join(f"a {role}" for role in Role if role in roles) or "of another kind"
