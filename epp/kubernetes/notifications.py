"""Tells plugins of objects of the Kubernetes API: one list and watch for each `ObjectSource` of the configuration."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from epp.api.plugin import Clock, GroupVersionKind, ObjectExtractor
from epp.datalayer.notifications import Guard
from epp.kubernetes.connection import ApiConnection, ApiError
from epp.kubernetes.reflector import KubernetesObject, Metadata, Reflector
from epp.registry.assembly import ObjectSourceAssembly

log = logging.getLogger(__name__)

_LOOK_AGAIN = 5.0


class AnyObject(KubernetesObject):
    """An object with all there is of it."""

    document: dict[str, Any] = msgspec.field(default_factory=dict)


def _any_object(raw: msgspec.Raw) -> AnyObject:
    document = msgspec.json.decode(raw, type=dict[str, Any])
    return AnyObject(msgspec.convert(document.get("metadata"), Metadata), document)


class _Resource(msgspec.Struct):
    name: str
    kind: str
    namespaced: bool = True


class _Resources(msgspec.Struct):
    resources: list[_Resource] = []


class _Told:
    """What one source's extractors know. Implements `epp.kubernetes.reflector.Follower`."""

    def __init__(self, extractors: Sequence[ObjectExtractor[Any]], guard: Guard) -> None:
        self._extractors = extractors
        self._guard = guard
        self._known: dict[tuple[str, str], AnyObject] = {}

    def replaced(self, objects: list[AnyObject]) -> None:
        there = {_key(obj): obj for obj in objects}
        for key in [key for key in self._known if key not in there]:
            self.removed(self._known[key])
        for key, obj in there.items():
            known = self._known.get(key)
            if known is None or known.metadata.resource_version != obj.metadata.resource_version:
                self.changed(obj)

    def changed(self, obj: AnyObject) -> None:
        self._known[_key(obj)] = obj
        for extractor in self._extractors:
            self._guard.call(extractor, extractor.object_changed, obj.document)

    def removed(self, obj: AnyObject) -> None:
        self._known.pop(_key(obj), None)
        for extractor in self._extractors:
            self._guard.call(extractor, extractor.object_removed, obj.document)


class ObjectNotifications:
    """Between `start` and `stop`, extractors hear of the objects of their sources in one namespace."""

    def __init__(
        self,
        connection: ApiConnection,
        namespace: str,
        sources: Sequence[ObjectSourceAssembly],
        *,
        clock: Clock,
        rng: random.Random,
        metrics: Any = None,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._sources = sources
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._finding: list[asyncio.Task[None]] = []
        self._reflectors: list[Reflector[AnyObject]] = []

    def start(self) -> None:
        """Begin. A kind that is not there yet is looked for again and again."""
        self._finding = [
            asyncio.create_task(self._follow(source), name=f"{source.source.name} looks for its kind")
            for source in self._sources
        ]

    async def stop(self) -> None:
        """End."""
        for task in self._finding:
            task.cancel()
        await asyncio.gather(*self._finding, return_exceptions=True)
        for reflector in self._reflectors:
            await reflector.stop()

    async def _follow(self, source: ObjectSourceAssembly) -> None:
        told = _Told(source.extractors, Guard(source.source.type, self._clock, self._metrics))
        path = await self._path(source)
        reflector = Reflector(
            self._connection,
            path,
            AnyObject,
            told,
            clock=self._clock,
            rng=self._rng,
            optional=True,
            decode=_any_object,
        )
        self._reflectors.append(reflector)
        reflector.start()

    async def _path(self, source: ObjectSourceAssembly) -> str:
        """Where the kind's objects are: the API server tells what a kind's plural is, once it has the kind."""
        watched = source.source.watched
        base = f"/apis/{watched.group}/{watched.version}" if watched.group else f"/api/{watched.version}"
        said = ""
        while True:
            try:
                found = await self._plural(base, watched)
                if found is not None:
                    return (
                        f"{base}/namespaces/{self._namespace}/{found.name}"
                        if found.namespaced
                        else (f"{base}/{found.name}")
                    )
                problem = f"{base} has no kind {watched.kind}"
            except (ApiError, aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError) as error:
                problem = str(error) or type(error).__name__
            if problem != said:
                said = problem
                log.warning("%s waits for its kind, asking again now and then: %s", source.source.name, problem)
            await asyncio.sleep(_LOOK_AGAIN * self._rng.uniform(0.8, 1.2))

    async def _plural(self, base: str, watched: GroupVersionKind) -> _Resource | None:
        listed = msgspec.json.decode(await self._connection.get(base, {}), type=_Resources)
        # Names with a slash are parts of objects: `pods/status`.
        return next((r for r in listed.resources if r.kind == watched.kind and "/" not in r.name), None)


def _key(obj: AnyObject) -> tuple[str, str]:
    return obj.metadata.namespace, obj.metadata.name
