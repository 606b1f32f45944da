"""Whether a class keeps the contract of `epp.api`, told at start instead of at the first request."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec.inspect

from epp.api import plugin as api
from epp.api.errors import ConfigError
from epp.api.plugin import Params, Plugin
from epp.config.errors import did_you_mean
from epp.config.roles import Role

ROLE_BASES: dict[type, Role] = {
    api.Parser: Role.PARSER,
    api.Producer: Role.PRODUCER,
    api.Admitter: Role.ADMITTER,
    api.Filter: Role.FILTER,
    api.Scorer: Role.SCORER,
    api.Picker: Role.PICKER,
    api.ProfileHandler: Role.PROFILE_HANDLER,
    api.Decider: Role.DECIDER,
    api.SaturationDetector: Role.SATURATION_DETECTOR,
    api.DataSource: Role.DATA_SOURCE,
    api.EndpointSource: Role.ENDPOINT_SOURCE,
    api.ObjectSource: Role.OBJECT_SOURCE,
    api.Extractor: Role.EXTRACTOR,
    api.EndpointExtractor: Role.ENDPOINT_EXTRACTOR,
    api.ObjectExtractor: Role.OBJECT_EXTRACTOR,
    api.Discovery: Role.DISCOVERY,
}
_CONTRACT = (Plugin, *ROLE_BASES, api.EndpointScorer)
REQUEST_HOOKS = tuple(name for name in vars(Plugin) if name.startswith("on_"))
STABILITIES = ("alpha", "beta", "stable", "deprecated")

MAY_WAIT = frozenset({"produce"})
"""Hooks that may be `async def` although the base is not."""


def roles_of(kind: type[Plugin[Any]]) -> frozenset[Role]:
    """What a class can be in a configuration; `HOOKS` when it overrides one of the `on_*` hooks."""
    roles = {role for base, role in ROLE_BASES.items() if issubclass(kind, base)}
    if any(getattr(kind, hook) is not getattr(Plugin, hook) for hook in REQUEST_HOOKS):
        roles.add(Role.HOOKS)
    return frozenset(roles)


def verify(kind: Any, expected_type: str | None = None) -> type[Plugin[Any]]:
    """The class itself, or a `ConfigError` that names the class, what is wrong, and the fix."""
    if not (inspect.isclass(kind) and issubclass(kind, Plugin)):
        raise ConfigError(f"{_name(kind)} is no plugin class", fix="inherit from one of the bases, e.g. `epp.Scorer`")
    plugin: type[Plugin[Any]] = kind
    if not isinstance(plugin.type, str) or not plugin.type:
        raise ConfigError(f"{_name(plugin)} has no `type`", fix='add `type = "my-plugin"` to the class')
    if expected_type is not None and plugin.type != expected_type:
        raise ConfigError(
            f'{_name(plugin)} is registered as `{expected_type}`, but says `type = "{plugin.type}"`',
            fix="use one name in both places",
        )
    if plugin.stability not in STABILITIES:
        raise ConfigError(
            f"{_name(plugin)}: stability {plugin.stability!r} is none of {', '.join(STABILITIES)}",
            fix=did_you_mean(str(plugin.stability), STABILITIES),
        )
    _check_params(plugin)
    _check_arguments(plugin, "__init__", Plugin.__init__)
    for name, spec in _contract_of(plugin).items():
        _check_member(plugin, name, spec)
    _check_misspelled(plugin)
    if not roles_of(plugin):
        raise ConfigError(
            f"{_name(plugin)} does nothing: it has no role and overrides no `on_*` hook",
            fix="inherit from one of the bases, e.g. `epp.Scorer`",
        )
    return plugin


def _check_params(kind: type[Plugin[Any]]) -> None:
    params = kind.Params
    if not (inspect.isclass(params) and issubclass(params, Params)):
        raise ConfigError(f"{_name(kind)}.Params is not an `epp.Params`", fix="write `class Params(epp.Params): ...`")
    try:
        msgspec.inspect.type_info(params)
    except Exception as error:  # whatever an annotation raises when it is evaluated
        raise ConfigError(
            f"{_name(kind)}.Params cannot be read: {error}", fix="use types that msgspec knows, defined in the module"
        ) from error


def _contract_of(kind: type) -> dict[str, Any]:
    """Public functions and properties of the bases that the class has, the most derived one for each name."""
    contract: dict[str, Any] = {}
    for base in _CONTRACT:
        if issubclass(kind, base):
            contract |= {
                name: member
                for name, member in vars(base).items()
                if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
            }
    return contract


def _check_member(kind: type[Plugin[Any]], name: str, spec: Any) -> None:
    member = inspect.getattr_static(kind, name)
    if getattr(member, "__isabstractmethod__", False):
        own = [other for base in _own_classes(kind) for other in vars(base) if not other.startswith("_")]
        fix = did_you_mean(name, own)
        raise ConfigError(
            f"{_name(kind)} does not implement `{name}`",
            fix=f"rename {fix.removeprefix('did you mean ').removesuffix('?')} to `{name}`"
            if fix.startswith("did you mean")
            else f"add `def {name}{inspect.signature(spec)}`",
        )
    if member is spec:
        return
    if isinstance(spec, property):
        if inspect.isfunction(member):
            raise ConfigError(f"{_name(kind)}.{name} is a method, not a property", fix="put `@property` above it")
        return
    _check_arguments(kind, name, spec)
    function = inspect.unwrap(getattr(kind, name))
    waits, may_wait = inspect.iscoroutinefunction(function), inspect.iscoroutinefunction(spec)
    if waits and not may_wait and name not in MAY_WAIT:
        raise ConfigError(
            f"{_name(kind)}.{name} is `async def`, but this hook must not wait",
            fix="write `def`; what has to wait belongs into a producer's `produce`",
        )
    if may_wait and not waits:
        raise ConfigError(f"{_name(kind)}.{name} must be `async def`", fix=f"write `async def {name}`")


def _check_arguments(kind: type[Plugin[Any]], name: str, spec: Any) -> None:
    """The hook is called with positions, so the override has to take as many as the base."""
    member = inspect.getattr_static(kind, name)
    wanted = [parameter for parameter in inspect.signature(spec).parameters if parameter != "self"]
    function = getattr(kind, name)
    if not callable(function):
        raise ConfigError(f"{_name(kind)}.{name} is not a method", fix=f"write `def {name}{inspect.signature(spec)}`")
    given = len(wanted) if isinstance(member, staticmethod | classmethod) else len(wanted) + 1
    signature = inspect.signature(function)
    try:
        signature.bind(*[None] * given)
    except TypeError as error:
        raise ConfigError(
            f"{_name(kind)}.{name}({', '.join(signature.parameters)}) cannot take ({', '.join(wanted)})",
            fix=f"write `def {name}(self, {', '.join(wanted)})`" if wanted else f"write `def {name}(self)`",
        ) from error


def _check_misspelled(kind: type[Plugin[Any]]) -> None:
    for base in _own_classes(kind):
        for name in vars(base):
            if name.startswith("on_") and name not in REQUEST_HOOKS:
                raise ConfigError(
                    f"{_name(kind)}.{name} would never be called: there is no such hook",
                    fix=did_you_mean(name, REQUEST_HOOKS),
                )


def _own_classes(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base not in _CONTRACT and base.__module__ != api.__name__]


def _name(kind: Any) -> str:
    if not inspect.isclass(kind):
        return repr(kind)
    return f"{kind.__module__}:{kind.__qualname__}"
