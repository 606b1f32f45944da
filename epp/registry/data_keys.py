"""Who produces what others consume: missing producers, the order to run in, loops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from epp.api.errors import ConfigError
from epp.api.keys import ANY_PRODUCER, DEFAULT_PRODUCERS, PREFIX_CACHE_MATCH, TOKENIZED_PROMPT, DataKey
from epp.api.plugin import Plugin
from epp.config.errors import did_you_mean

SHARED = frozenset({TOKENIZED_PROMPT})
"""Types with one slot, whoever fills it (`request.prompt`): any producer of them will do. The in-flight columns are not
among them: a renamed producer fills columns of its own, and a consumer of the default ones would read zeros."""

PluginMap = Mapping[str, Plugin[Any]]


def producer_of(key: DataKey, plugins: PluginMap) -> str | None:
    """The name of the plugin that produces a key, None when there is none.

    For `ANY_PRODUCER` the only one, or among several the one with the default's name.
    """
    if key.producer == ANY_PRODUCER:
        made = other_producers(key, plugins)
        default = DEFAULT_PRODUCERS.get(key.type)
        return made[0] if len(made) == 1 else default if default in made else None
    for name, plugin in plugins.items():
        if key in plugin.produces:
            return name
    if key.type in SHARED:
        for name, plugin in plugins.items():
            if any(produced.type == key.type for produced in plugin.produces):
                return name
    return None


def missing_default(consumer: str, key: DataKey, plugins: PluginMap) -> str:
    """The type of the plugin to add so that a key is produced. Raises `ConfigError` when none can be added."""
    need = f"{consumer} needs {key}"
    default = DEFAULT_PRODUCERS.get(key.type)
    if key.producer in plugins:
        made = ", ".join(map(str, plugins[key.producer].produces)) or "nothing"
        raise ConfigError(f"{need}, but {key.producer} produces {made}", fix=f"name a producer of {key.type}")
    if default is None or key.producer not in (default, ANY_PRODUCER):
        others = [name for name, plugin in plugins.items() if any(k.type == key.type for k in plugin.produces)]
        raise ConfigError(
            f"{need}, but there is no plugin named `{key.producer}`",
            fix=did_you_mean(key.producer, others) or f"add a plugin with `name: {key.producer}` that produces it",
        )
    return default


def check_unambiguous(consumer: str, plugin: Plugin[Any], plugins: PluginMap) -> None:
    """Raises `ConfigError` when a plugin needs `ANY_PRODUCER` producer of a type that several make."""
    for key in plugin.consumes:
        made = other_producers(key, plugins) if key.producer == ANY_PRODUCER else []
        if len(made) > 1:
            raise ConfigError(
                f"{consumer} reads {key.type} of whichever plugin produces it, but there are {' and '.join(made)}",
                fix="name the one that it shall read in its parameters (`prefixMatchInfoProducerName`)"
                if key.type == PREFIX_CACHE_MATCH
                else "name the one that it shall read in its parameters",
            )


def other_producers(key: DataKey, plugins: PluginMap) -> list[str]:
    """Plugins that produce the same type of data under another key."""
    return [name for name, plugin in plugins.items() if any(made.type == key.type for made in plugin.produces)]


def in_order(plugins: PluginMap, last: Iterable[str] = ()) -> list[Plugin[Any]]:
    """Every plugin after those whose keys it reads; otherwise in the order of the configuration, `last` ones last."""
    late = set(last)
    names = [name for name in plugins if name not in late] + [name for name in plugins if name in late]
    needs = {name: _needs(name, plugins) for name in names}
    ordered: list[str] = []
    done: set[str] = set()
    for name in names:
        _visit(name, needs, done, [], ordered)
    return [plugins[name] for name in ordered]


def _needs(name: str, plugins: PluginMap) -> list[tuple[str, DataKey]]:
    plugin = plugins[name]
    found = [(producer_of(key, plugins), key) for key in (*plugin.consumes, *plugin.consumes_if_present)]
    return [(producer, key) for producer, key in found if producer is not None]


def _visit(
    name: str,
    needs: Mapping[str, Sequence[tuple[str, DataKey]]],
    done: set[str],
    under_way: list[str],
    ordered: list[str],
) -> None:
    if name in done:
        return
    if name in under_way:
        loop = [*under_way[under_way.index(name) :], name]
        raise ConfigError(
            f"data producers wait for each other: {' -> '.join(loop)}", fix="break the loop at one of them"
        )
    under_way.append(name)
    for producer, _ in needs[name]:
        if producer != name:
            _visit(producer, needs, done, under_way, ordered)
    under_way.pop()
    done.add(name)
    ordered.append(name)
