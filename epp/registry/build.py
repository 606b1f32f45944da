"""A configuration and a catalog become an `Assembly`, or one error that says where and how to fix it."""

from __future__ import annotations

from typing import Any

from epp.api.errors import ConfigError
from epp.api.keys import ANY_PRODUCER, DEFAULT_PRODUCERS, PEER_ENDPOINT
from epp.api.plugin import (
    Admitter,
    DataSource,
    Decider,
    EndpointExtractor,
    Filter,
    ObjectSource,
    Picker,
    Plugin,
    Producer,
    ProfileHandler,
    Scorer,
)
from epp.config.decode import decode
from epp.config.defaults import DEFAULT_FLOW_CONTROL, apply_defaults
from epp.config.document import child
from epp.config.errors import LocatedError, did_you_mean
from epp.config.roles import Role
from epp.config.schema import EndpointPickerConfig, PluginSpec
from epp.config.validate import check_names, validate
from epp.registry.assembly import Assembly, ObjectSourceAssembly, Plugins, SourceAssembly
from epp.registry.catalog import Catalog
from epp.registry.contexts import ContextFactory
from epp.registry.data_keys import check_unambiguous, in_order, missing_default, other_producers, producer_of
from epp.registry.inspection import roles_of
from epp.scheduling.scheduler import ProfileAssembly


def build(
    config: EndpointPickerConfig,
    catalog: Catalog,
    *,
    context_factory: ContextFactory,
    allow_experimental: bool = False,
) -> Assembly:
    """Fill in defaults, check everything, build every plugin. Nothing is started: no socket, no task, no file."""
    check_names(config)
    builder = _Builder(config, catalog, context_factory, allow_experimental)
    builder.complete()
    builder.build_all()
    builder.add_missing_producers()
    return builder.assemble()


class _Builder:
    def __init__(
        self, config: EndpointPickerConfig, catalog: Catalog, factory: ContextFactory, allow_experimental: bool
    ) -> None:
        self._config = config
        self._declared = frozenset(spec.name for spec in config.plugins)
        self._catalog = catalog
        self._factory = factory
        self._allow_experimental = allow_experimental
        self._classes: dict[str, type[Plugin[Any]]] = {}
        self._built: dict[str, Plugin[Any]] = {}
        self._under_way: list[str] = []
        self._asked_for: set[str] = set()
        self._warnings: list[str] = []

    def complete(self) -> None:
        for spec in self._config.plugins:
            self._resolve(spec)
        self._config = apply_defaults(self._config, self._roles, frozenset(self._catalog.types()))
        for spec in self._config.plugins:
            self._resolve(spec)
        self._warnings += validate(self._config, self._roles)
        if self._config.gate("flowControl") and DEFAULT_FLOW_CONTROL[0] not in self._catalog.types():
            self._warn(
                "featureGates",
                "this version has no queues: requests are admitted by the plain rule (priority below 0 is refused "
                "while the pool is saturated)",
            )

    def build_all(self) -> None:
        for spec in list(self._config.plugins):
            self._find(spec.name, "")

    def add_missing_producers(self) -> None:
        """Until nobody misses anything: what is added may itself need producers."""
        checked: set[str] = set()
        while pending := [name for name in self._built if name not in checked]:
            for name in pending:
                checked.add(name)
                plugin = self._built[name]
                for key in plugin.consumes:
                    if producer_of(key, self._built) is not None:
                        continue
                    if key.producer == ANY_PRODUCER and other_producers(key, self._built):
                        continue  # which of them, `check_unambiguous` asks when all are there
                    try:
                        kind = missing_default(name, key, self._built)
                    except ConfigError as error:
                        raise self._located(error, self._path(name)) from error
                    others = other_producers(key, self._built)
                    if others:
                        self._warn(
                            self._path(name),
                            f"{name} reads {key}, for which `{kind}` was added; it does not read "
                            f"{' or '.join(others)}: name the producer it shall read in its parameters",
                        )
                    self._add_default(kind)
                for key in plugin.consumes_if_present if name in self._declared else ():
                    # Where the peer is may also come in a header, from another picker.
                    if key != PEER_ENDPOINT and producer_of(key, self._built) is None:
                        what = key if key.producer != ANY_PRODUCER else key.type
                        self._warn(self._path(name), f"{name} goes without {what}: nobody produces it")
        for name, plugin in self._built.items():
            try:
                check_unambiguous(name, plugin, self._built)
            except ConfigError as error:
                raise self._located(error, self._path(name)) from error

    def assemble(self) -> Assembly:
        config = self._config
        # `validate` has checked the roles of what is picked out of here.
        built: dict[str, Any] = {spec.name: self._built[spec.name] for spec in config.plugins}
        discovery = config.data_layer.discovery
        last = [discovery.plugin_ref] if discovery is not None else []
        try:
            order = in_order(built, last)
        except ConfigError as error:
            raise self._located(error, "plugins") from error
        handlers = [plugin for plugin in built.values() if isinstance(plugin, ProfileHandler)]
        self._check_handler(handlers[0])
        flow_control = config.flow_control
        assert flow_control is not None
        assert flow_control.saturation_detector is not None
        return Assembly(
            config=config,
            plugins=Plugins(built, [plugin for plugin in order if isinstance(plugin, Producer)], order),
            profiles=tuple(
                ProfileAssembly(
                    name=profile.name,
                    filters=tuple(p for e in profile.plugins if isinstance(p := built[e.plugin_ref], Filter)),
                    scorers=tuple(
                        (p, 1.0 if e.weight is None else e.weight)
                        for e in profile.plugins
                        if isinstance(p := built[e.plugin_ref], Scorer)
                    ),
                    picker=next(p for e in profile.plugins if isinstance(p := built[e.plugin_ref], Picker)),
                )
                for profile in config.scheduling_profiles
            ),
            handler=handlers[0],
            parsers=tuple(built[reference.plugin_ref] for reference in config.request_handler.parsers),
            saturation_detector=built[flow_control.saturation_detector.plugin_ref],
            sources=tuple(
                SourceAssembly(
                    built[source.plugin_ref],
                    tuple(built[extractor.plugin_ref] for extractor in source.extractors),
                )
                for source in config.data_layer.sources
                if isinstance(built[source.plugin_ref], DataSource)
            ),
            endpoint_extractors=tuple(plugin for plugin in built.values() if isinstance(plugin, EndpointExtractor)),
            object_sources=tuple(
                ObjectSourceAssembly(
                    built[source.plugin_ref],
                    tuple(built[extractor.plugin_ref] for extractor in source.extractors),
                )
                for source in config.data_layer.sources
                if isinstance(built[source.plugin_ref], ObjectSource)
            ),
            discovery=built[discovery.plugin_ref] if discovery is not None else None,
            admitters=tuple(plugin for plugin in built.values() if isinstance(plugin, Admitter)),
            warnings=tuple(dict.fromkeys(self._warnings)),
        )

    def _check_handler(self, handler: ProfileHandler[Any]) -> None:
        path = self._path(handler.name)
        try:
            warnings = handler.check_profiles([profile.name for profile in self._config.scheduling_profiles])
        except ConfigError as error:
            raise self._located(error, f"{path}.parameters") from error
        for warning in warnings:
            self._warn(path, warning)
        for name, plugin in self._built.items():
            if isinstance(plugin, Decider) and name not in self._asked_for:
                self._warn(self._path(name), f"{name} is never used: name it in the `deciders` of the profile handler")

    def _roles(self, kind: str) -> frozenset[Role]:
        return roles_of(self._classes[kind]) if kind in self._classes else self._catalog.roles(kind)

    def _resolve(self, spec: PluginSpec) -> type[Plugin[Any]]:
        found = self._classes.get(spec.type)
        path = f"{self._path(spec.name)}.type"
        if found is None:
            try:
                found = self._classes[spec.type] = self._catalog.resolve(spec.type)
            except ConfigError as error:
                raise self._located(error, path) from error
            if found.stability == "deprecated":
                self._warn(
                    path, f"plugin type `{spec.type}` is deprecated: `epp plugins {spec.type}` tells what to use"
                )
        if found.stability == "alpha" and not self._allow_experimental:
            raise self._config.document.error(
                f"plugin type `{spec.type}` is experimental (alpha)",
                path=path,
                fix="start with --allow-experimental-plugins",
            )
        return found

    def _find(self, name: str, asking: str) -> Plugin[Any]:
        """The plugin with this name, built now if it is not yet."""
        known = self._built.get(name)
        if known is not None:
            return known
        if name in self._under_way:
            loop = " -> ".join([*self._under_way[self._under_way.index(name) :], name])
            raise self._config.document.error(
                f"plugins refer to each other in a loop: {loop}", path=self._path(name), fix="break it at one of them"
            )
        spec = self._config.find(name)
        if spec is None:
            if name in DEFAULT_PRODUCERS.values():
                return self._add_default(name)
            raise self._config.document.error(
                f"{asking} refers to a plugin named `{name}`, which there is not",
                path=self._path(asking),
                fix=did_you_mean(name, [plugin.name for plugin in self._config.plugins]),
            )
        self._under_way.append(name)
        try:
            plugin = self._instance(spec)
        finally:
            self._under_way.pop()
        self._built[name] = plugin
        return plugin

    def _instance(self, spec: PluginSpec) -> Plugin[Any]:
        kind = self._classes[spec.type]
        path = f"{self._path(spec.name)}.parameters"
        params = decode(
            spec.parameters,
            kind.Params,
            self._config.document,
            path,
            aliases=getattr(kind, "param_aliases", None),
        )

        def find(wanted: str) -> Plugin[Any]:
            self._asked_for.add(wanted)
            return self._find(wanted, spec.name)

        context = self._factory(spec.name, find)
        try:
            return kind(params, context)
        except LocatedError:
            raise
        except ConfigError as error:
            raise self._located(error, path) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a constructor is foreign code
            raise self._config.document.error(
                f"{spec.name} cannot be built: {type(error).__name__}: {error}",
                path=path,
                fix=f"see its parameters: `epp plugins {spec.type}`",
            ) from error

    def _add_default(self, kind: str) -> Plugin[Any]:
        spec = PluginSpec(name=kind, type=kind)
        self._config.plugins.append(spec)
        self._resolve(spec)
        return self._find(kind, "")

    def _path(self, name: str) -> str:
        for index, spec in enumerate(self._config.plugins):
            if spec.name == name:
                return child("plugins", index)
        return "plugins"

    def _located(self, error: ConfigError, path: str) -> LocatedError:
        inner = f"{path}.{error.path}" if error.path else path
        return self._config.document.error(error.message, path=inner, fix=error.fix)

    def _warn(self, path: str, message: str) -> None:
        self._warnings.append(self._config.document.note(message, path))
