"""Settings that stand elsewhere in older or newer configurations, moved to where `schema` has them.

Both apiVersions take every spelling: what a file means depends on its keys alone.
"""

from __future__ import annotations

from typing import Any

from epp.config.document import Document, child
from epp.config.errors import did_you_mean

_CROSS_REPLICA = {
    "syncerPluginRef": "crossReplicaSyncerPluginRef",
    "syncInterval": "crossReplicaSyncInterval",
    "publishTimeout": "crossReplicaPublishTimeout",
}


def move_settings(tree: dict[str, Any], document: Document, warnings: list[str]) -> None:
    """Changes the tree's top level; `document` learns the lines of the new places. `LocatedError`: given twice."""
    _former(tree, document, warnings)
    layer = tree.get("dataLayer")
    if isinstance(layer, dict):
        layer = tree["dataLayer"] = dict(layer)
        _discovery(layer, document)
        _cross_replica(layer, document)


def _former(tree: dict[str, Any], document: Document, warnings: list[str]) -> None:
    """Former places at the top. The new place wins when both are given."""
    parser = tree.pop("parser", None)
    if parser is not None:
        warnings.append(document.note("deprecated: use requestHandler.parsers", "parser"))
        handler = tree.setdefault("requestHandler", {})
        if isinstance(handler, dict) and not handler.get("parsers"):
            document.lines["requestHandler.parsers[0]"] = document.line("parser")
            tree["requestHandler"] = {**handler, "parsers": [parser]}
    detector = tree.pop("saturationDetector", None)
    if detector is not None:
        warnings.append(document.note("deprecated: use flowControl.saturationDetector", "saturationDetector"))
        flow_control = tree.setdefault("flowControl", {})
        if isinstance(flow_control, dict) and "saturationDetector" not in flow_control:
            document.lines["flowControl.saturationDetector"] = document.line("saturationDetector")
            tree["flowControl"] = {**flow_control, "saturationDetector": detector}


def _discovery(layer: dict[str, Any], document: Document) -> None:
    """`discovery: {endpoints, peers}` of `llm-d.ai/v1` means `discovery` and `peerDiscovery`."""
    discovery = layer.get("discovery")
    path = "dataLayer.discovery"
    if not isinstance(discovery, dict) or not ({"endpoints", "peers"} & set(discovery)):
        return
    other = next((key for key in discovery if key not in ("pluginRef", "endpoints", "peers")), None)
    if other is not None:
        raise document.error(
            f"unknown field `{other}`",
            path=child(path, other),
            fix=did_you_mean(other, ("pluginRef", "endpoints", "peers")),
        )
    if "endpoints" in discovery and "pluginRef" in discovery:
        raise document.error(
            "discovery.pluginRef and discovery.endpoints are both given", path=f"{path}.endpoints", fix="keep one"
        )
    if "peers" in discovery:
        _move(layer, discovery, "peers", "peerDiscovery", path, document)
    if "endpoints" in discovery:
        layer["discovery"] = discovery["endpoints"]
        document.lines[f"{path}.pluginRef"] = document.line(f"{path}.endpoints.pluginRef")
    elif "pluginRef" in discovery:
        layer["discovery"] = {"pluginRef": discovery["pluginRef"]}
    else:
        del layer["discovery"]


def _cross_replica(layer: dict[str, Any], document: Document) -> None:
    """`crossReplica` of `llm-d.ai/v1` holds what were three fields of `dataLayer`."""
    section = layer.get("crossReplica")
    path = "dataLayer.crossReplica"
    if not isinstance(section, dict):
        return
    del layer["crossReplica"]
    for key in section:
        if key not in _CROSS_REPLICA:
            raise document.error(
                f"unknown field `{key}`", path=child(path, key), fix=did_you_mean(key, tuple(_CROSS_REPLICA))
            )
        _move(layer, section, key, _CROSS_REPLICA[key], path, document)


def _move(layer: dict[str, Any], section: dict[str, Any], key: str, place: str, path: str, document: Document) -> None:
    here = child(path, key)
    if place in layer:
        raise document.error(f"`{place}` is given too, and means the same", path=here, fix="keep one")
    layer[place] = section[key]
    document.lines[f"dataLayer.{place}"] = document.line(here)
