"""The effective configuration as plain data: what the file says and what was filled in, told apart."""

from __future__ import annotations

from typing import Any

import msgspec

from epp.api.plugin import Plugin
from epp.config.document import Document, child
from epp.config.duration import Duration
from epp.config.quantity import Quantity
from epp.registry.assembly import Assembly


def effective(assembly: Assembly) -> tuple[dict[str, Any], list[str]]:
    """The configuration in the file's own words, parameters included, and the paths that are not from the file.

    Only the outermost path of a filled-in part is listed. What is unset and has no value is left out.
    """
    config = assembly.config
    tree: dict[str, Any] = {
        "apiVersion": config.api_version,
        "kind": config.kind,
        "featureGates": [f"{name}={str(on).lower()}" for name, on in config.feature_gates.items()],
        "plugins": [
            {
                "name": spec.name,
                "type": spec.type,
                "parameters": _parameters(assembly.plugins.by_name[spec.name]),
            }
            for spec in config.plugins
        ],
        "schedulingProfiles": [
            {
                "name": profile.name,
                "plugins": [
                    {"pluginRef": entry.plugin_ref}
                    | ({"weight": 1.0 if entry.weight is None else entry.weight} if entry.plugin_ref in scorers else {})
                    for entry in profile.plugins
                ],
            }
            for profile, scorers in (
                (profile, {scorer.name for scorer, _ in built.scorers})
                for profile, built in zip(config.scheduling_profiles, assembly.profiles, strict=True)
            )
        ],
        "dataLayer": _plain(config.data_layer),
        "requestHandler": _plain(config.request_handler),
        "flowControl": {
            key: value
            for key, value in _plain(config.flow_control).items()
            # Without its gate the rest has no effect; printing it would only raise that warning when it is read again.
            if config.gate("flowControl") or key == "saturationDetector" or not config.is_default(f"flowControl.{key}")
        },
    }
    tree = _without_nothing(tree)
    return tree, _defaults(tree, config.document)


def _parameters(plugin: Plugin[Any]) -> Any:
    return _plain(plugin.params)


def _plain(value: Any) -> Any:
    plain = msgspec.to_builtins(value, enc_hook=str)
    return _spelled(value, plain)


def _spelled(value: Any, plain: Any) -> Any:
    """Durations as `60s`, quantities as numbers: what `to_builtins` makes of them depends on their base type."""
    if isinstance(value, msgspec.Struct) and isinstance(plain, dict):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        return {encoded: _spelled(getattr(value, name), plain[encoded]) for name, encoded in names if encoded in plain}
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, Quantity):
        return int(value)
    if isinstance(value, list | tuple) and isinstance(plain, list | tuple):
        return [_spelled(item, made) for item, made in zip(value, plain, strict=True)]
    return plain


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_nothing(entry) for key, entry in value.items()}
        return {key: entry for key, entry in kept.items() if entry is not None and entry not in ("", [], {})}
    if isinstance(value, list | tuple):
        return [_without_nothing(entry) for entry in value]
    return value


def _defaults(value: Any, document: Document, path: str = "") -> list[str]:
    if path and path not in document.lines:
        return [path]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, entry in entries for found in _defaults(entry, document, child(path, key))]
