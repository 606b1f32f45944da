"""From text to an `EndpointPickerConfig`, with today's names for what used to be called otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from epp.config.decode import decode
from epp.config.document import Document, child, read
from epp.config.errors import LocatedError, did_you_mean
from epp.config.places import move_settings
from epp.config.schema import (
    API_VERSION,
    API_VERSIONS,
    FEATURE_GATES,
    KIND,
    DataLayerSpec,
    EndpointPickerConfig,
    FlowControlSpec,
    PluginSpec,
    ProfileSpec,
    RequestHandlerSpec,
)

DEPRECATED_API_VERSIONS = ("inference.networking.x-k8s.io/v1alpha1",)
_TRUE_FALSE = {"true": True, "True": True, "TRUE": True, "t": True, "T": True, "1": True}
_TRUE_FALSE.update({"false": False, "False": False, "FALSE": False, "f": False, "F": False, "0": False})
_SECTIONS = (
    "apiVersion",
    "kind",
    "featureGates",
    "plugins",
    "schedulingProfiles",
    "dataLayer",
    "requestHandler",
    "flowControl",
)
_FORMER = ("parser", "saturationDetector")


DEFAULT_CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
  - type: queue-scorer
  - type: kv-cache-utilization-scorer
  - type: prefix-cache-scorer
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
        weight: 2
      - pluginRef: kv-cache-utilization-scorer
        weight: 2
      - pluginRef: prefix-cache-scorer
        weight: 3
"""


class Loaded(NamedTuple):
    """A configuration as written (nothing filled in), and what its author should know."""

    config: EndpointPickerConfig
    warnings: tuple[str, ...]


def load_file(path: Path) -> Loaded:
    """Read and `load` a file. An unreadable file is a `ConfigError` too."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocatedError(
            f"cannot read the configuration file {path}: {getattr(error, 'strerror', None) or error}",
            source=str(path),
            fix="check the path",
        ) from error
    return load(text, str(path))


def load(text: str, source_name: str = "configuration") -> Loaded:
    """Syntax, structure and gates. References between plugins are checked by `validate`, once defaults are in.

    No text at all is the default configuration.
    """
    if not text.strip():
        return Loaded(default_config(), ())
    document = read(text, source_name)
    tree = dict(document.value)
    warnings: list[str] = []
    for key in tree:
        if key not in _SECTIONS and key not in _FORMER:
            raise document.error(f"unknown field `{key}`", path=key, fix=did_you_mean(key, _SECTIONS))
    _check_version(tree, document, warnings)
    gates = _feature_gates(tree.get("featureGates", []), document)
    move_settings(tree, document, warnings)

    config = EndpointPickerConfig(
        feature_gates=gates,
        plugins=decode(tree.get("plugins", []), list[PluginSpec], document, "plugins"),
        scheduling_profiles=decode(
            tree.get("schedulingProfiles", []), list[ProfileSpec], document, "schedulingProfiles"
        ),
        data_layer=decode(tree.get("dataLayer", {}), DataLayerSpec, document, "dataLayer"),
        request_handler=decode(tree.get("requestHandler", {}), RequestHandlerSpec, document, "requestHandler"),
        flow_control=decode(tree["flowControl"], FlowControlSpec, document, "flowControl")
        if "flowControl" in tree
        else None,
        document=document,
    )
    for plugin in config.plugins:
        plugin.name = plugin.name or plugin.type
    written = document.value.get("flowControl")
    if isinstance(written, dict) and set(written) - {"saturationDetector"} and not config.gate("flowControl"):
        warnings.append(
            document.note("no effect while its gate is off: add `flowControl` to featureGates", "flowControl")
        )
    return Loaded(config, tuple(warnings))


def default_config() -> EndpointPickerConfig:
    """What is used when no configuration is given at all: everything in it counts as filled in."""
    config = load(DEFAULT_CONFIG, "default configuration").config
    config.document = Document({}, config.document.source)
    return config


def _check_version(tree: dict[str, Any], document: Document, warnings: list[str]) -> None:
    version = tree.get("apiVersion")
    if version in DEPRECATED_API_VERSIONS:
        warnings.append(document.note(f"{version} is deprecated: use {API_VERSION}", "apiVersion"))
    elif version not in API_VERSIONS:
        raise document.error(
            f"apiVersion {version!r} is not known" if version else "`apiVersion` is missing",
            path="apiVersion",
            fix=f"use `apiVersion: {API_VERSION}`",
        )
    kind = tree.get("kind")
    if kind != KIND:
        raise document.error(
            f"kind {kind!r} is not known" if kind else "`kind` is missing", path="kind", fix=f"use `kind: {KIND}`"
        )


def _feature_gates(value: Any, document: Document) -> dict[str, bool]:
    gates: dict[str, bool] = {}
    for index, entry in enumerate(decode(value, list[str], document, "featureGates")):
        path = child("featureGates", index)
        name, equals, setting = entry.partition("=")
        if name not in FEATURE_GATES:
            raise document.error(f"unknown feature gate `{name}`", path=path, fix=did_you_mean(name, FEATURE_GATES))
        if equals and setting not in _TRUE_FALSE:
            raise document.error(
                f"malformed feature gate `{entry}`", path=path, fix=f"write `{name}`, `{name}=true` or `{name}=false`"
            )
        gates[name] = _TRUE_FALSE[setting] if equals else True
    return gates
