"""InferenceObjective and InferenceModelRewrite: from the API server, or from a file with the same manifests.

Both kinds live in the group `llm-d.ai`, in older clusters in `inference.networking.x-k8s.io`. Where the new group is
served only that one counts, as in llm-d-router. Objects for another pool are ignored.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from epp.api.plugin import Clock
from epp.director.rewrites import Rewrite, RewriteRule, Target
from epp.kubernetes.connection import ApiConnection
from epp.kubernetes.reflector import KubernetesObject, Reflector

log = logging.getLogger(__name__)

GROUP = "llm-d.ai"
LEGACY_GROUP = "inference.networking.x-k8s.io"
VERSION = "v1alpha2"


class PoolRef(msgspec.Struct):
    """Which pool an object is for."""

    name: str = ""
    group: str = "inference.networking.k8s.io"
    kind: str = "InferencePool"


class _ObjectiveSpec(msgspec.Struct, rename="camel"):
    priority: int | None = None
    pool_ref: PoolRef = msgspec.field(default_factory=PoolRef)


class InferenceObjective(KubernetesObject):
    """A name with a priority."""

    spec: _ObjectiveSpec = msgspec.field(default_factory=_ObjectiveSpec)


class _ModelMatch(msgspec.Struct):
    value: str = ""
    type: str = "Exact"


class _Match(msgspec.Struct):
    model: _ModelMatch | None = None


class _RewriteTarget(msgspec.Struct, rename="camel"):
    model_rewrite: str
    weight: int | None = None


class _Rule(msgspec.Struct):
    targets: list[_RewriteTarget] = []
    matches: list[_Match] = []


class _RewriteSpec(msgspec.Struct, rename="camel"):
    pool_ref: PoolRef = msgspec.field(default_factory=PoolRef)
    rules: list[_Rule] = []


class InferenceModelRewrite(KubernetesObject):
    """Rules that map models to others."""

    spec: _RewriteSpec = msgspec.field(default_factory=_RewriteSpec)

    @property
    def rewrite(self) -> Rewrite:
        """As the director takes it. A match without a model matches every model, and so does its rule."""
        rules = []
        for rule in self.spec.rules:
            values = tuple(match.model.value if match.model is not None else "" for match in rule.matches)
            models = values if values and all(values) else ()
            targets = tuple(Target(target.model_rewrite, target.weight) for target in rule.targets)
            rules.append(RewriteRule(targets, models))
        return Rewrite(self.metadata.name, tuple(rules), self.metadata.creation_timestamp)


class Scope(msgspec.Struct, frozen=True):
    """Where objects are, and the pool that they must name."""

    namespace: str
    pool: str
    pool_group: str


DeclaredT = TypeVar("DeclaredT", bound=InferenceObjective | InferenceModelRewrite)


class _Kept(Generic[DeclaredT]):
    """The objects of one group. Implements `epp.kubernetes.reflector.Follower`."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.objects: dict[str, DeclaredT] = {}
        self._changed = changed

    def replaced(self, objects: list[DeclaredT]) -> None:
        self.objects = {obj.metadata.name: obj for obj in objects}
        self._changed()

    def changed(self, obj: DeclaredT) -> None:
        self.objects[obj.metadata.name] = obj
        self._changed()

    def removed(self, obj: DeclaredT) -> None:
        self.objects.pop(obj.metadata.name, None)
        self._changed()


class Declared(Generic[DeclaredT]):
    """All objects of one kind for one pool, from whichever group counts; `changed` is called with them."""

    def __init__(
        self,
        connection: ApiConnection,
        kind: type[DeclaredT],
        plural: str,
        scope: Scope,
        changed: Callable[[list[DeclaredT]], None],
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._scope = scope
        self._changed = changed
        self._kept: list[_Kept[DeclaredT]] = []
        self._reflectors: list[Reflector[DeclaredT]] = []
        for group in (GROUP, LEGACY_GROUP):
            kept: _Kept[DeclaredT] = _Kept(self._update)
            path = f"/apis/{group}/{VERSION}/namespaces/{scope.namespace}/{plural}"
            self._kept.append(kept)
            self._reflectors.append(Reflector(connection, path, kind, kept, clock=clock, rng=rng, optional=True))

    @property
    def synced(self) -> bool:
        """Whether both groups have answered once."""
        return all(reflector.synced for reflector in self._reflectors)

    def start(self) -> None:
        """Begin to follow."""
        for reflector in self._reflectors:
            reflector.start()

    async def stop(self) -> None:
        """End."""
        for reflector in self._reflectors:
            await reflector.stop()

    def _update(self) -> None:
        current, legacy = self._kept
        kept = legacy if self._reflectors[0].absent else current
        if kept is legacy and legacy.objects:
            log.warning("objects of the group %s are in use: move them to %s", LEGACY_GROUP, GROUP)
        self._changed([obj for obj in kept.objects.values() if is_for(obj.spec.pool_ref, self._scope)])


def is_for(reference: PoolRef, scope: Scope) -> bool:
    """Whether an object is for this pool."""
    return (reference.name, reference.group, reference.kind) == (scope.pool, scope.pool_group, "InferencePool")


def priorities(objectives: list[InferenceObjective]) -> dict[str, int]:
    """As `ObjectiveTable.replace` takes them."""
    return {objective.metadata.name: objective.spec.priority or 0 for objective in objectives}
