"""The API server of the tests behaves as the API conventions say, where the picker's own tests do not show it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.kubernetes.api_server import LEASES, PODS, POOLS, ApiServer, pod, pool


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=vllm", "abc"),
        ("app==vllm,tier=gpu", "a"),
        ("tier!=gpu", "bc"),
        ("tier in (gpu, cpu)", "ab"),
        ("tier notin (gpu,cpu),app", "c"),
        ("tier", "ab"),
        ("!tier", "c"),
        ("app=other", ""),
    ],
)
async def test_label_selectors(server: ApiServer, client: aiohttp.ClientSession, selector: str, names: str) -> None:
    for name, labels in (("a", {"tier": "gpu"}), ("b", {"tier": "cpu"}), ("c", {})):
        server.put(PODS, pod(name, "10.0.0.1", labels={"app": "vllm", **labels}))
    async with client.get(PODS.format("ns"), params={"labelSelector": selector}) as answer:
        assert "".join(item["metadata"]["name"] for item in (await answer.json())["items"]) == names


async def test_the_status_changes_alone(server: ApiServer, client: aiohttp.ClientSession) -> None:
    made = server.put(POOLS, pool("pool", 8000))
    path = POOLS.format("ns") + "/pool"
    sent = {**made, "spec": {}, "status": {"parents": [{"parentRef": {"name": "gateway"}}]}}
    async with client.put(path + "/status", json=sent) as answer:
        assert answer.status == 200
    async with client.put(path + "/status", json=sent) as answer:
        assert answer.status == 409  # from an older version
    async with client.get(path) as answer:
        now = await answer.json()
    assert now["spec"] == made["spec"]
    assert now["status"] == sent["status"]
    async with client.get(POOLS.format("ns") + "/other/status") as answer:
        assert answer.status == 404


async def test_leases_are_locked_optimistically(server: ApiServer, client: aiohttp.ClientSession) -> None:
    lease = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}}
    async with client.post(LEASES.format("ns"), json=lease) as answer:
        made = await answer.json()
    async with client.put(LEASES.format("ns") + "/l", json={**made, "spec": {"holderIdentity": "b"}}) as answer:
        assert answer.status == 200
    async with client.put(LEASES.format("ns") + "/l", json=made) as answer:
        assert answer.status == 409
    async with client.get(LEASES.format("ns") + "/l") as answer:
        assert (await answer.json())["spec"] == {"holderIdentity": "b"}


async def test_a_page_that_has_expired(server: ApiServer, client: aiohttp.ClientSession) -> None:
    for name in "abc":
        server.put(PODS, pod(name, "10.0.0.1"))
    async with client.get(PODS.format("ns"), params={"limit": "2"}) as answer:
        more = (await answer.json())["metadata"]["continue"]
    server.put(PODS, pod("d", "10.0.0.1"))
    server.compact()
    async with client.get(PODS.format("ns"), params={"limit": "2", "continue": more}) as answer:
        assert answer.status == 410
