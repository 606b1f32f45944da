"""List, then watch: a copy of some objects of the API server that is kept as fresh as the server allows.

What can go wrong and what is done: a resource version that is too old (410) lists again; an expired token (401) is read
again by the connection; a connection that breaks, or says nothing for too long, watches on from the last version;
events that are older than what is known of their object (a watch that begins anew, a server that repeats itself or
mixes up the order) are left out by their version; a server that cannot be reached leaves the last known state as it
is, however long (`age` tells). A kind that the server does not know (404: the CRD is not there) counts as empty, and
is asked for again. A kind that was there before does so only after a while, and only if it is optional: a server that
starts up answers 404 for what it has not found yet.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
import msgspec

from epp.api.plugin import Clock
from epp.kubernetes.connection import ApiConnection, ApiError

log = logging.getLogger(__name__)

PAGE = 250
"""Objects per page of a list: 2 MB of pods are read in 4 ms, which is how long requests wait for it."""
_SLICE = 50
"""Objects that are read between two chances for requests."""
WATCH_SECONDS = 40.0
"""About how long a watch lasts before it begins anew from where it is; so a connection that died unseen is noticed."""
_OVERDUE = 10.0
"""Seconds after the end of a watch until a connection that still says nothing counts as dead."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_ABSENT_PAUSE = 5.0
_WANTED_PAUSE = 1.0
"""For a kind without which no request can be served."""
_ABSENT_AFTER = 30.0
_TOMBSTONES = 1024
"""Versions of deleted objects that are remembered, so that no late event brings one back."""
_QUIET = 60.0
_BEGIN_ANEW = frozenset({410, 504})
"""Too old a version, or one that the server has not reached: it was restored from a backup."""


class Metadata(msgspec.Struct, rename="camel"):
    """The part of every object's metadata that is needed."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class KubernetesObject(msgspec.Struct):
    """What kinds derive from."""

    metadata: Metadata


ObjectT = TypeVar("ObjectT", bound=KubernetesObject)


class _ListMetadata(msgspec.Struct, rename={"continue_": "continue", "resource_version": "resourceVersion"}):
    resource_version: str = ""
    continue_: str = ""


class _List(msgspec.Struct):
    metadata: _ListMetadata
    items: list[msgspec.Raw] = []


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    code: int = 500
    message: str = ""


class Follower(Protocol[ObjectT]):
    """Who keeps the copy. Called on the event loop; what it raises is logged, and the watch goes on."""

    def replaced(self, objects: list[ObjectT]) -> None:
        """These are all there are."""

    def changed(self, obj: ObjectT) -> None:
        """This one is new or has changed."""

    def removed(self, obj: ObjectT) -> None:
        """This one is gone, or the selector does not match it any more."""


class Reflector(Generic[ObjectT]):
    """One kind in one namespace, between `start` and `stop`. `kind` is a msgspec struct with what is needed of it.

    `optional`: not being allowed to see the kind (403) counts as there being none, for whoever gives no right to see it
    has no use for it. `single`: it is one object that is followed; when it cannot be read, what is known of it stays,
    while of many such a one is left out. `decode`: from JSON, when `kind` alone does not say how.
    """

    def __init__(
        self,
        connection: ApiConnection,
        path: str,
        kind: type[ObjectT],
        follower: Follower[ObjectT],
        *,
        clock: Clock,
        rng: random.Random,
        label_selector: str = "",
        field_selector: str = "",
        optional: bool = False,
        single: bool = False,
        decode: Callable[[msgspec.Raw], ObjectT] | None = None,
    ) -> None:
        self.path = path
        self.synced = False
        self.absent = False
        self.lists = self.failures = self.unreadable = 0
        self._optional = optional
        self._single = single
        self._refused = frozenset({403, 404}) if optional else frozenset({404})
        self._refused_since: float | None = None
        self._connection = connection
        self._follower = follower
        self._clock = clock
        self._rng = rng
        self._selectors = {
            name: value
            for name, value in (("labelSelector", label_selector), ("fieldSelector", field_selector))
            if value
        }
        self._decode = decode or msgspec.json.Decoder(kind).decode
        self._listed = 0  # the version of the last list: no older event tells anything new
        self._seen: dict[str, int] = {}  # object -> its version
        self._deleted: dict[str, int] = {}
        self._heard_at = clock()
        self._version = ""
        self._pause = _FIRST_PAUSE
        self._warned_at = self._misread_at = -_QUIET
        self._task: asyncio.Task[None] | None = None

    @property
    def age(self) -> float:
        """Seconds since the server was last heard. Up to `WATCH_SECONDS` is normal."""
        return self._clock() - self._heard_at

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=f"reflector {self.path}")

    async def stop(self) -> None:
        """End; the copy stays as it is."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except ApiError as error:
                if error.status in _BEGIN_ANEW and self._version:
                    self._version = ""
                    log.info("%s: watching from this version is not possible, listing again", self.path)
                    await asyncio.sleep(_FIRST_PAUSE * self._rng.uniform(0.5, 1.0))
                    continue
                if error.status in self._refused and self._believed():
                    self._not_there(error)
                    pause = _ABSENT_PAUSE if self._optional else _WANTED_PAUSE
                    await asyncio.sleep(pause * self._rng.uniform(0.8, 1.2))
                    continue
                await self._failed(error)
            except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError) as error:
                await self._failed(error)
            except Exception:
                log.exception("%s: the watch failed, listing again", self.path)
                self._version = ""
                await self._failed(None)

    async def _failed(self, error: Exception | None) -> None:
        """Wait before the next attempt, longer each time."""
        self.failures += 1
        now = self._clock()
        if error is not None and now - self._warned_at >= _QUIET:
            self._warned_at = now
            log.warning(
                "%s on %s is not reachable, the last known state stays in use: %s",
                self.path, self._connection.host, str(error) or type(error).__name__,
            )  # fmt: skip
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))

    def _believed(self) -> bool:
        """Whether a refusal means that there is nothing. Not at once of a kind that was there before."""
        now = self._clock()
        self._refused_since = now if self._refused_since is None else self._refused_since
        return not self.lists or self.absent or (self._optional and now - self._refused_since >= _ABSENT_AFTER)

    def _not_there(self, error: ApiError) -> None:
        self._heard_at = self._clock()
        self._version = ""
        self._seen.clear()
        if not self.absent:
            log.info("%s is not there, asking again now and then: %s", self.path, error)
            self.absent = True
            self._tell(self._follower.replaced, [])
        self.synced = True

    async def _list(self) -> None:
        """All objects, page by page. A page that has expired (410) begins the list anew."""
        objects: list[ObjectT] = []
        params = {**self._selectors, "limit": str(PAGE)}
        while True:
            page = msgspec.json.decode(await self._connection.get(self.path, params), type=_List)
            for start in range(0, len(page.items), _SLICE):
                read = map(self._read, page.items[start : start + _SLICE])
                objects += [obj for obj in read if obj is not None]
                await asyncio.sleep(0)
            if not page.metadata.continue_:
                break
            params["continue"] = page.metadata.continue_
        self.lists += 1
        self._reached()
        self.absent = False
        self._tell(self._follower.replaced, objects)
        self._version = page.metadata.resource_version
        self._listed = _number(self._version) or 0
        self._seen = {_identity(obj): _number(obj.metadata.resource_version) or 0 for obj in objects}
        self._deleted.clear()
        self.synced = True

    async def _watch(self) -> None:
        seconds = WATCH_SECONDS * self._rng.uniform(0.75, 1.5)
        params = {
            **self._selectors,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(seconds)),
        }
        async with self._connection.watch(self.path, params, seconds + _OVERDUE) as lines:
            self._reached()
            await self._follow(lines)
        # A server that ends every watch at once is not asked a thousand times a second.
        await asyncio.sleep(0.05)

    async def _follow(self, lines: AsyncIterator[bytes]) -> None:
        decode = msgspec.json.Decoder(_Event).decode
        async for line in lines:
            event = decode(line)
            self._heard_at = self._clock()
            if event.type == "ERROR":
                status = msgspec.json.decode(event.object, type=_Status)
                raise ApiError(status.code, status.message, f"watch {self.path}")
            if event.type == "BOOKMARK":
                self._advance(msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version)
                continue
            obj = self._read(event.object)
            if obj is None:
                continue
            deleted = event.type == "DELETED"
            self._advance(obj.metadata.resource_version)
            if self._is_news(obj, deleted):
                self._tell(self._follower.removed if deleted else self._follower.changed, obj)

    def _read(self, raw: msgspec.Raw) -> ObjectT | None:
        """None for an object that is not what its kind says: it must not keep the others away. One that was understood
        before stays as it was then, until everything is listed again."""
        try:
            return self._decode(raw)
        except msgspec.MsgspecError as error:
            self.unreadable += 1
            if self._single:
                raise
            now = self._clock()
            if now - self._misread_at >= _QUIET:
                self._misread_at = now
                log.warning("%s: an object is left out, it cannot be read: %s: %.200s", self.path, error, bytes(raw))
            return None

    def _advance(self, version: str) -> None:
        """The next watch begins at the newest version that was heard of. Versions that are no numbers are believed."""
        new, old = _number(version), _number(self._version)
        if new is None or old is None or new > old:
            self._version = version

    def _is_news(self, obj: ObjectT, deleted: bool) -> bool:
        """Whether nothing newer is known of this object."""
        key, version = _identity(obj), _number(obj.metadata.resource_version)
        if version is not None:
            if version <= max(self._listed, self._seen.get(key, 0), self._deleted.get(key, 0)):
                return False
            if deleted:
                self._deleted[key] = version
                if len(self._deleted) > _TOMBSTONES:
                    del self._deleted[next(iter(self._deleted))]
            else:
                self._seen[key] = version
        if deleted:
            self._seen.pop(key, None)
        return True

    def _reached(self) -> None:
        self._heard_at = self._clock()
        self._refused_since = None
        self._pause = _FIRST_PAUSE
        self._warned_at = -_QUIET

    def _tell(self, hear: Callable[[Any], None], what: Any) -> None:
        try:
            hear(what)
        except Exception:
            log.exception("%s: a change could not be taken over", self.path)


class _BookmarkMetadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _Bookmark(msgspec.Struct):
    metadata: _BookmarkMetadata


def _identity(obj: KubernetesObject) -> str:
    return obj.metadata.uid or obj.metadata.name


def _number(version: str) -> int | None:
    """Versions are numbers that grow with every change of any object of a kind (KEP-5504)."""
    return int(version) if version.isdecimal() else None
