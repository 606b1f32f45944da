"""Where plugin classes are found.

(a) Catalogs, entry points of the group `epp.plugins.catalogs`: each is a table `type -> "module:Class"`.
(b) Entry points of the group `epp.plugins`: the name is the type.
(c) `type: "module:Class"` in the configuration, directly.
(d) `type: "./file.py:Class"`, a file beside the configuration.

Classes are imported when a configuration uses them, so a plugin with heavy libraries costs nothing to those who do not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from epp.api.errors import ConfigError
from epp.api.plugin import Plugin
from epp.config.errors import did_you_mean
from epp.config.roles import Role
from epp.registry.inspection import roles_of, verify

CATALOGS = "epp.plugins.catalogs"
PLUGINS = "epp.plugins"


@dataclass(frozen=True, slots=True)
class Entry:
    """A type that can be used: `target` is `module:Class`, `origin` the package that brings it."""

    type: str
    target: str
    origin: str


class Catalog:
    """Plugin types and their classes. `directory` is where `./file.py:Class` is looked for; None: nowhere."""

    def __init__(
        self, entries: Mapping[str, str | type[Plugin[Any]]] | None = None, *, directory: Path | None = None
    ) -> None:
        self._directory = directory
        self._entries: dict[str, Entry] = {}
        self._classes: dict[str, type[Plugin[Any]]] = {}
        for kind, target in (entries or {}).items():
            if isinstance(target, str):
                self._add(Entry(kind, target, "given"))
            else:
                self.register(verify(target, kind))

    @classmethod
    def load(cls, config_dir: Path | None = None) -> Catalog:
        """Everything that is installed. Raises `ConfigError` when two packages bring the same type."""
        catalog = cls(directory=config_dir)
        for point in importlib.metadata.entry_points(group=CATALOGS):
            origin = _origin(point)
            try:
                table = point.load()
                targets = {str(kind): str(target) for kind, target in table.items()}
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a foreign module may raise anything when it is imported
                raise ConfigError(
                    f"the plugin catalog {point.value} of {origin} cannot be loaded: {error}",
                    fix="repair or uninstall that package",
                ) from error
            for kind, target in targets.items():
                catalog._add(Entry(kind, target, origin))
        for point in importlib.metadata.entry_points(group=PLUGINS):
            catalog._add(Entry(point.name, point.value, _origin(point)))
        return catalog

    def register(self, kind: type[Plugin[Any]]) -> None:
        """Add one class under its own `type` (tests, embedding)."""
        found = verify(kind)
        self._add(Entry(found.type, f"{found.__module__}:{found.__qualname__}", "given"))
        self._classes[found.type] = found

    def types(self) -> tuple[str, ...]:
        """All registered types, sorted."""
        return tuple(sorted(self._entries))

    def origin(self, kind: str) -> str:
        """The package that brings a type."""
        entry = self._entries.get(kind)
        return entry.origin if entry is not None else "configuration"

    def resolve(self, kind: str) -> type[Plugin[Any]]:
        """The verified class of a type. Raises `ConfigError` with the fix."""
        known = self._classes.get(kind)
        if known is not None:
            return known
        entry = self._entries.get(kind)
        if entry is not None:
            found = verify(_load(entry.target, f"plugin type `{kind}` of {entry.origin}"), kind)
        elif ":" in kind:
            found = self._direct(kind)
        else:
            raise ConfigError(
                f"unknown plugin type `{kind}`",
                fix=did_you_mean(kind, self._entries) or "`epp plugins` lists what is installed",
            )
        self._classes[kind] = found
        return found

    def roles(self, kind: str) -> frozenset[Role]:
        """The roles of a type; an unknown one has none."""
        if kind not in self._entries and ":" not in kind:
            return frozenset()
        return roles_of(self.resolve(kind))

    def _add(self, entry: Entry) -> None:
        other = self._entries.get(entry.type)
        if other is not None and other.target != entry.target:
            raise ConfigError(
                f"the plugin type `{entry.type}` is brought by both {other.origin} ({other.target}) and "
                f"{entry.origin} ({entry.target})",
                fix="uninstall one of them, or rename the type",
            )
        self._entries[entry.type] = entry

    def _direct(self, kind: str) -> type[Plugin[Any]]:
        place, _, name = kind.rpartition(":")
        if not place.endswith(".py"):
            return verify(_load(kind, f"`type: {kind}`"))
        if self._directory is None and not Path(place).is_absolute():
            raise ConfigError(
                f"`type: {kind}` is a file beside the configuration, which has none when given as text",
                fix="use --config-file, or an absolute path",
            )
        path = (Path(place) if self._directory is None else self._directory / place).resolve()
        return verify(_attribute(_load_file(path), name, f"`type: {kind}`"))


def _origin(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _load(target: str, what: str) -> Any:
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        raise ConfigError(
            f"{what}: there is no module `{missing}`", fix="install the package that has it, or correct the name"
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a foreign module may raise anything when it is imported
        raise ConfigError(
            f"{what}: importing `{module_name}` failed: {type(error).__name__}: {error}", fix="repair that module"
        ) from error
    return _attribute(module, name, what)


def _load_file(path: Path) -> Any:
    name = f"epp_file_{path.stem}_{xxhash.xxh64_hexdigest(str(path).encode())}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"there is no plugin file {path}", fix="paths are relative to the configuration file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # type annotations of the classes in it are looked up there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a foreign module may raise anything when it is imported
        del sys.modules[name]
        raise ConfigError(
            f"the plugin file {path} failed: {type(error).__name__}: {error}", fix="repair that file"
        ) from error
    return module


def _attribute(module: Any, name: str, what: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{what}: there is no `{name}` in it",
                fix=did_you_mean(part, [n for n in vars(found) if not n.startswith("_")]),
            )
        found = getattr(found, part)
    return found
