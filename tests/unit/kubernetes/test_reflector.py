"""List and watch: what may happen that the pool's tests do not show."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec
import pytest

from epp.kubernetes import reflector
from epp.kubernetes.connection import ApiConnection
from epp.kubernetes.reflector import KubernetesObject, Reflector
from tests.kubernetes.api_server import PODS, ApiServer, pod
from tests.waiting import until


class Names:
    """Knows names; fails for some."""

    def __init__(self, *bad: str) -> None:
        self.names: set[str] = set()
        self.bad = set(bad)

    def replaced(self, objects: list[KubernetesObject]) -> None:
        self.names = {obj.metadata.name for obj in objects}

    def changed(self, obj: KubernetesObject) -> None:
        if obj.metadata.name in self.bad:
            raise RuntimeError("not this one")
        self.names.add(obj.metadata.name)

    def removed(self, obj: KubernetesObject) -> None:
        self.names.discard(obj.metadata.name)


def following(
    connection: ApiConnection, names: Names, decode: Callable[[msgspec.Raw], KubernetesObject] | None = None
) -> Reflector[KubernetesObject]:
    made = Reflector(
        connection,
        PODS.format("ns"),
        KubernetesObject,
        names,
        clock=time.monotonic,
        rng=random.Random(1),
        decode=decode,
    )
    made.start()
    return made


async def test_a_follower_that_fails_hears_of_the_others(
    server: ApiServer, connection: ApiConnection, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names("b")
    followed = following(connection, names)
    await until(lambda: followed.synced)
    for name in "abc":
        server.put(PODS, pod(name, "10.0.0.1"))
    await until(lambda: names.names == {"a", "c"})
    assert "a change could not be taken over" in caplog.text
    assert (followed.lists, followed.failures) == (1, 0)
    await followed.stop()


async def test_what_nobody_foresaw_begins_anew(
    server: ApiServer, connection: ApiConnection, caplog: pytest.LogCaptureFixture
) -> None:
    broken = False
    plain = msgspec.json.Decoder(KubernetesObject).decode

    def decode(raw: msgspec.Raw) -> KubernetesObject:
        if broken:
            raise ZeroDivisionError
        return plain(raw)

    names = Names()
    followed = following(connection, names, decode)
    server.put(PODS, pod("a", "10.0.0.1"))
    await until(lambda: names.names == {"a"})
    broken = True
    server.put(PODS, pod("b", "10.0.0.1"))
    await until(lambda: followed.failures > 1)
    assert names.names == {"a"}
    assert "the watch failed, listing again" in caplog.text
    broken = False
    await until(lambda: names.names == {"a", "b"})
    await followed.stop()


async def test_bookmarks_save_lists(server: ApiServer, connection: ApiConnection) -> None:
    """What happens to other kinds makes a version old; a bookmark says how far nothing was missed."""
    server.bookmark_seconds = 0.05
    names = Names()
    followed = following(connection, names)
    await until(lambda: followed.synced)
    for number in range(20):
        server.put("/api/v1/namespaces/{}/services", {"metadata": {"name": f"s{number}"}})
    await until(lambda: followed._version == str(server.version))
    server.compact()
    server.drop()
    server.put(PODS, pod("a", "10.0.0.1"))
    await until(lambda: names.names == {"a"})
    assert followed.lists == 1
    await followed.stop()


async def test_a_connection_that_died_unseen_is_noticed(
    server: ApiServer, connection: ApiConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "WATCH_SECONDS", 1.4)
    monkeypatch.setattr(reflector, "_OVERDUE", 0.1)
    names = Names()
    followed = following(connection, names)
    await until(lambda: followed.synced and server.watches == 1)
    server.silent, server.bookmark_seconds = True, 60.0
    await asyncio.sleep(0.6)  # the last bookmark
    server.put(PODS, pod("a", "10.0.0.1"))
    await asyncio.sleep(0.1)
    server.silent = False
    assert not names.names
    await until(lambda: names.names == {"a"})
    assert (followed.lists, followed.failures) == (1, 1)
    await followed.stop()


async def test_versions_of_the_deleted_are_bounded(
    server: ApiServer, connection: ApiConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "_TOMBSTONES", 10)
    names = Names()
    followed = following(connection, names)
    await until(lambda: followed.synced)
    for number in range(30):
        server.put(PODS, pod(f"p{number}", "10.0.0.1"))
        server.delete(PODS, f"p{number}")
    server.put(PODS, pod("last", "10.0.0.1"))
    await until(lambda: names.names == {"last"})
    assert len(followed._deleted) == 10
    assert followed._seen.keys() == {server.objects[PODS.format("ns")]["last"]["metadata"]["uid"]}
    await followed.stop()


async def test_versions_need_not_be_numbers(connection: ApiConnection) -> None:
    followed = Reflector(
        connection, "/p", KubernetesObject, Names(), clock=time.monotonic, rng=random.Random(1), decode=None
    )
    for version in ("5", "abc", "def"):
        followed._advance(version)
        assert followed._version == version
    followed._advance("7")
    followed._advance("6")
    assert followed._version == "7"
