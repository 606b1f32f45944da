"""List, then watch: a copy of some objects of the API server that is kept as fresh as the server allows.

What can go wrong and what is done: a resource version that is too old (410) lists again; an expired token (401) is read
again by the connection; a connection that breaks, or says nothing for too long, watches on from the last version;
events that were seen already (a watch that begins anew, a server that repeats itself) are left out by their version; a
server that cannot be reached leaves the last known state as it is, however long (`age` tells). A kind that the
server does not know (404: the CRD is not there) counts as empty, and is asked for again.
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

PAGE = 500
"""Objects per page of a list: what kubectl and client-go ask for."""
WATCH_SECONDS = 60.0
"""How long a watch lasts before it begins anew from where it is; so a connection that died unseen is noticed."""
_SILENCE = WATCH_SECONDS * 1.5 + 15.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_ABSENT_PAUSE = 5.0
_QUIET = 60.0
_GONE = 410


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
    has no use for it.
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
    ) -> None:
        self.path = path
        self.synced = False
        self.absent = False
        self.lists = self.failures = 0
        self._refused = frozenset({403, 404}) if optional else frozenset({404})
        self._connection = connection
        self._follower = follower
        self._clock = clock
        self._rng = rng
        self._selectors = {
            name: value
            for name, value in (("labelSelector", label_selector), ("fieldSelector", field_selector))
            if value
        }
        self._decode = msgspec.json.Decoder(kind).decode
        self._heard_at = clock()
        self._version = ""
        self._pause = _FIRST_PAUSE
        self._warned_at = -_QUIET
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
                if error.status == _GONE:
                    self._version = ""
                    log.info("%s: the resource version is too old, listing again", self.path)
                    continue
                if error.status in self._refused:
                    self._not_there(error)
                    await asyncio.sleep(_ABSENT_PAUSE * self._rng.uniform(0.8, 1.2))
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

    def _not_there(self, error: ApiError) -> None:
        self._heard_at = self._clock()
        self._version = ""
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
            objects += [self._decode(item) for item in page.items]
            if not page.metadata.continue_:
                break
            params["continue"] = page.metadata.continue_
            await asyncio.sleep(0)
        self.lists += 1
        self._reached()
        self.absent = False
        self._tell(self._follower.replaced, objects)
        self._version = page.metadata.resource_version
        self.synced = True

    async def _watch(self) -> None:
        seconds = WATCH_SECONDS * self._rng.uniform(0.75, 1.5)
        params = {
            **self._selectors,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(seconds)),
        }
        async with self._connection.watch(self.path, params, _SILENCE) as lines:
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
            obj = self._decode(event.object) if event.type != "BOOKMARK" else None
            version = (
                obj.metadata.resource_version
                if obj is not None
                else msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
            )
            if not _newer(version, self._version):
                continue
            self._version = version
            if obj is not None:
                self._tell(self._follower.removed if event.type == "DELETED" else self._follower.changed, obj)

    def _reached(self) -> None:
        self._heard_at = self._clock()
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


def _newer(version: str, than: str) -> bool:
    """Versions are numbers, growing with every change (KEP-5504); should one not be, it is believed."""
    try:
        return int(version) > int(than)
    except ValueError:
        return version != than
