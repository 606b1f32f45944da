"""A lease on an API server over real HTTP."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime

import pytest

from epp.kubernetes.connection import ApiConnection
from epp.kubernetes.leader_election import ElectionSettings, LeaderElection, Role
from epp.kubernetes.lease import Lease, LeaseConflict
from epp.kubernetes.lease_store import ApiLease, LeaseRefused
from tests.kubernetes.api_server import LEASES, ApiServer

NOW = datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)


def lease(holder: str, version: str = "") -> Lease:
    return Lease(holder, 15, NOW, NOW, 3, version)


async def test_who_writes_second_is_told(connection: ApiConnection) -> None:
    store = ApiLease(connection, "ns", "epp")
    assert await store.get() is None
    made = await store.create(lease("a"))
    assert (made.holder, made.renewed, made.transitions) == ("a", NOW, 3)
    with pytest.raises(LeaseConflict):
        await store.create(lease("b"))
    renewed = await store.update(lease("a", made.version))
    assert renewed.version != made.version
    with pytest.raises(LeaseConflict):
        await store.update(lease("b", made.version))
    assert await store.get() == renewed


async def test_without_the_right_the_message_says_which(server: ApiServer, connection: ApiConnection) -> None:
    store = ApiLease(connection, "ns", "epp")
    server.forbidden = {LEASES}
    with pytest.raises(
        LeaseRefused, match="cannot get lease ns/epp: status 403, forbidden: allow get, create and update"
    ):
        await store.get()
    server.forbidden = set()
    server.status = 500
    with pytest.raises(LeaseRefused, match=r"cannot update lease ns/epp: status 500, injected$"):
        await store.update(lease("a", "1"))


async def test_of_replicas_that_begin_together_one_leads(server: ApiServer, connection: ApiConnection) -> None:
    """Each with its own view; the API server alone decides. Whoever leads goes, and another one follows."""
    settings = ElectionSettings(lease_duration=1.0, retry_period=0.05, request_timeout=0.5)
    electing = [
        LeaderElection(
            ApiLease(connection, "ns", "epp"),
            f"replica-{number}",
            clock=time.monotonic,
            wall_clock=lambda: datetime.now(UTC),
            rng=random.Random(number),
            changed=lambda role: None,
            settings=settings,
        )
        for number in range(5)
    ]

    def leaders() -> list[LeaderElection]:
        return [each for each in electing if each.role is Role.LEADER]

    await asyncio.gather(*(each.start() for each in electing))
    while electing:
        for _ in range(1000):
            if leaders():
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.15)
        (leader,) = leaders()
        assert server.objects[LEASES.format("ns")]["epp"]["spec"]["holderIdentity"] == leader.identity
        electing.remove(leader)
        await leader.stop()
    assert server.objects[LEASES.format("ns")]["epp"]["spec"]["leaseTransitions"] == 4
