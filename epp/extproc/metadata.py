"""Metadata that travels beside the messages: whom the gateway allows, whom it asked, whom we chose.

Names and forms: Endpoint Picker Protocol v1.0.0 (proposal 004 of the Gateway API Inference Extension).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import struct_pb2

from epp.extproc import ext_proc_pb2 as pb

LB_NAMESPACE: Final = "envoy.lb"
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"
DESTINATION: Final = "x-gateway-destination-endpoint"
SUBSET: Final = "x-gateway-destination-endpoint-subset"
SERVED: Final = "x-gateway-destination-endpoint-served"
SCORES: Final = "x-gateway-destination-endpoint-scores"


def _value(metadata: pb.Metadata, namespace: str, key: str) -> struct_pb2.Value | None:
    namespaces = metadata.filter_metadata
    if namespace not in namespaces:
        return None
    fields = namespaces[namespace].fields
    return fields.get(key)


def subset_hint(metadata: pb.Metadata) -> tuple[str, ...] | None:
    """The endpoints the gateway allows, as `ip` or `ip:port`. None: no hint; empty: there is one, and it names nobody.

    One string with commas, or a list whose items may have commas too; blanks are trimmed. A hint of another type
    allows nobody: picking outside of it would be worse than refusing.
    """
    value = _value(metadata, SUBSET_NAMESPACE, SUBSET)
    if value is None:
        return None
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        texts = [value.string_value]
    elif kind == "list_value":
        texts = [item.string_value for item in value.list_value.values]
    else:
        texts = []
    return tuple(entry.strip() for text in texts for entry in text.split(",") if entry.strip())


def served_endpoint(metadata: pb.Metadata) -> str:
    """The `ip:port` that answered, "" when the gateway does not tell (only some do)."""
    value = _value(metadata, LB_NAMESPACE, SERVED)
    return "" if value is None else value.string_value.strip()


def decision_metadata(destination: str, scores: Mapping[str, float] | None) -> bytes:
    """`dynamic_metadata` of a decision, ready to be put behind a reply."""
    told: dict[str, Any] = {DESTINATION: destination}
    if scores is not None:
        told[SCORES] = {endpoint: float(score) for endpoint, score in scores.items()}
    return dynamic_metadata({LB_NAMESPACE: told})


def dynamic_metadata(namespaces: Mapping[str, Any]) -> bytes:
    """The field `dynamic_metadata` of a reply, to be appended to the reply's bytes; ValueError for an odd type."""
    response = pb.ProcessingResponse()
    response.dynamic_metadata.update(namespaces)
    return response.SerializeToString()
