"""Objectives and rewrites of both API groups, over real HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from epp.kubernetes import reflector
from epp.kubernetes.connection import connect
from epp.kubernetes.declarations import Declared, InferenceModelRewrite, InferenceObjective, Scope, priorities
from tests.kubernetes.api_server import LEGACY_OBJECTIVES, OBJECTIVES, ApiServer

SCOPE = Scope("ns", "pool", "inference.networking.k8s.io")


def objective(called: str, priority: int | None = None, **reference: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"poolRef": {"name": "pool", **reference}}
    if priority is not None:
        spec["priority"] = priority
    return {"kind": "InferenceObjective", "metadata": {"name": called}, "spec": spec}


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    monkeypatch.setattr(reflector, "_ABSENT_PAUSE", 0.1)
    monkeypatch.setattr(reflector, "_ABSENT_AFTER", 0.2)
    async with ApiServer().serving() as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_the_new_group_counts_where_it_exists(server: ApiServer, tmp_path: Path) -> None:
    server.hidden = {OBJECTIVES}
    server.put(LEGACY_OBJECTIVES, objective("vip", 7))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(server.kubeconfig())
    connection = await connect({"KUBECONFIG": str(kubeconfig)})
    seen: dict[str, int] = {}

    def changed(objects: list[InferenceObjective]) -> None:
        seen.clear()
        seen.update(priorities(objects))

    declared = Declared(
        connection,
        InferenceObjective,
        "inferenceobjectives",
        SCOPE,
        changed,
        clock=time.monotonic,
        rng=random.Random(1),
    )
    declared.start()
    await until(lambda: seen == {"vip": 7} and declared.synced)
    server.put(OBJECTIVES, objective("vip", 9))
    server.put(OBJECTIVES, objective("plain"))
    server.put(OBJECTIVES, objective("foreign", 3, name="another"))
    server.put(OBJECTIVES, objective("group", 3, group="example.com"))
    assert seen == {"vip": 7}
    server.hidden = set()  # the CRD is installed
    await until(lambda: seen == {"vip": 9, "plain": 0})
    server.put(OBJECTIVES, objective("plain", -1))
    await until(lambda: seen == {"vip": 9, "plain": -1})
    server.delete(OBJECTIVES, "vip")
    await until(lambda: seen == {"plain": -1})
    server.hidden = {OBJECTIVES}
    server.forbidden = {LEGACY_OBJECTIVES}  # and the Role lets us see nothing
    server.drop()
    await until(lambda: not seen)
    await declared.stop()
    await connection.close()


def test_rewrites_as_the_director_takes_them() -> None:
    document = {
        "metadata": {"name": "canary", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "poolRef": {"name": "pool"},
            "rules": [
                {"matches": [{"model": {"value": "a"}}, {"model": {"type": "Exact", "value": "b"}}], "targets": []},
                {"matches": [{}], "targets": [{"modelRewrite": "x", "weight": 3}, {"modelRewrite": "y"}]},
                {"targets": [{"modelRewrite": "z"}]},
            ],
        },
    }
    made = msgspec.convert(document, InferenceModelRewrite).rewrite
    assert (made.name, made.created) == ("canary", "2026-01-01T00:00:00Z")
    assert [rule.models for rule in made.rules] == [("a", "b"), (), ()]
    assert [(target.model, target.weight) for target in made.rules[1].targets] == [("x", 3), ("y", None)]
