"""`k8s-notification-source`: objects of one kind of the Kubernetes API, as they come, change and go.

What it does: lists and watches the kind in the pool's namespace, and tells its extractors (`epp.ObjectExtractor`) of
every change. Several instances watch several kinds; all share the picker's connection.

When to use it: for a plugin of your own whose decisions depend on objects of the cluster: a ConfigMap, a Deployment.

Parameters: `group` (empty: the core group), `version` and `kind`, as in a manifest's `apiVersion` and `kind`.

The picker's Role must allow `get`, `list` and `watch` for it.

Metrics: `datalayer_extract_errors_total{source_type, extractor_type}`. Failure: a kind that is not there, or that the
picker may not see, counts as having no objects and is asked for again every few seconds; an API server that is lost
leaves things as they are. Without Kubernetes (file discovery) it tells of nothing, and the start says so.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from epp.api import GroupVersionKind, ObjectSource, Params


class K8sNotificationSourceParams(Params, frozen=True):
    """See the module."""

    version: Annotated[str, msgspec.Meta(min_length=1, description="API version, such as v1")]
    kind: Annotated[str, msgspec.Meta(min_length=1, description="kind, such as ConfigMap")]
    group: Annotated[str, msgspec.Meta(description="API group; empty: the core group")] = ""


class K8sNotificationSource(ObjectSource[K8sNotificationSourceParams]):
    """Objects of one kind."""

    type = "k8s-notification-source"
    Params = K8sNotificationSourceParams

    @property
    def watched(self) -> GroupVersionKind:
        params = self.params
        return GroupVersionKind(params.group, params.version, params.kind)
