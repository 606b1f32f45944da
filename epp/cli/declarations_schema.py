"""What may be in `--declarations-file`: the fields and bounds of the CRDs, which no API server checks here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
ApiVersion = Literal["llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2"]
Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A field with a typing error says nothing to anybody: it is refused."""


class _Metadata(msgspec.Struct):
    """The rest of the metadata means nothing here, and may be there."""

    name: Name


class _ObjectiveSpec(_Strict):
    priority: Int32 | None = None
    pool_ref: Any = None


class Objective(_Strict):
    """InferenceObjective."""

    metadata: _Metadata
    spec: _ObjectiveSpec
    kind: str
    api_version: ApiVersion | None = None
    status: Any = None


class _Model(_Strict):
    value: Annotated[str, msgspec.Meta(min_length=1)]
    type: Literal["Exact"] = "Exact"


class _Match(_Strict):
    model: _Model


class _Target(_Strict):
    model_rewrite: Annotated[str, msgspec.Meta(min_length=1)]
    weight: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class _Rule(_Strict):
    targets: Annotated[list[_Target], msgspec.Meta(min_length=1, max_length=64)]
    matches: Annotated[list[_Match], msgspec.Meta(max_length=64)] = []


class _RewriteSpec(_Strict):
    rules: Annotated[list[_Rule], msgspec.Meta(min_length=1, max_length=256)]
    pool_ref: Any = None


class ModelRewrite(_Strict):
    """InferenceModelRewrite."""

    metadata: _Metadata
    spec: _RewriteSpec
    kind: str
    api_version: ApiVersion | None = None
    status: Any = None
