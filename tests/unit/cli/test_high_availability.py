"""What a change of the leader does to readiness and admission."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from epp.api.errors import ServiceUnavailable
from epp.cli.high_availability import Leadership, identity, lease_name
from epp.director.admission import StandbyAdmission
from epp.kubernetes.leader_election import Role
from epp.kubernetes.lease import Lease, LeaseConflict
from epp.telemetry.exposition import render
from epp.telemetry.metrics import Registry
from epp.transport.health import HealthState, ServingStatus


class Store:
    """A lease in memory."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.away = False

    async def get(self) -> Lease | None:
        if self.away:
            raise ConnectionRefusedError
        return self.lease

    async def create(self, lease: Lease) -> Lease:
        self.lease = lease
        return lease

    async def update(self, lease: Lease) -> Lease:
        if self.lease is None:
            raise LeaseConflict
        self.lease = lease
        return lease


class Pool:
    """Remembers whether it is on standby."""

    standby = False

    def stand_by(self, waiting: bool) -> None:
        self.standby = waiting

    def ready(self) -> bool:
        return True


def leadership(store: Store, name: str = "me") -> tuple[Leadership, Pool, HealthState, Registry]:
    pool, health, registry = Pool(), HealthState(leader_election=True), Registry()
    made: Any = Leadership(
        store,
        pool,  # type: ignore[arg-type]
        health,
        registry,
        clock=lambda: 0.0,
        rng=random.Random(1),
        name=name,
        step_down_seconds=0.05,
    )
    health.update(synced=True)
    return made, pool, health, registry


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_a_leader_serves_and_a_follower_refuses() -> None:
    store = Store()
    first, pool, health, registry = leadership(store)
    await first.start()
    await until(lambda: health.ready)
    assert not pool.standby
    page, _ = await render(registry, "", ())
    assert b"llm_d_epp_leader 1" in page
    assert b"llm_d_epp_leader_election_eligible 1" in page
    second, other, waiting, _ = leadership(store, "other")
    await second.start()
    await until(lambda: second.election.holder == "me")
    assert other.standby
    assert waiting.status("readiness") is ServingStatus.NOT_SERVING
    assert waiting.status("liveness") is ServingStatus.SERVING
    await second.stop()
    await first.hand_over(0.0)
    assert health.ready  # it drains, and serves meanwhile
    assert not pool.standby
    assert store.lease is not None
    assert store.lease.holder == ""
    await first.stop()


async def test_who_hands_over_waits_until_the_gateway_knows_the_next_one() -> None:
    store = Store()
    first, *_ = leadership(store)
    await first.start()
    await until(lambda: first.election.role is Role.LEADER)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await first.hand_over(0.3)  # nobody follows
    assert loop.time() - began >= 0.15
    assert store.lease is not None
    assert store.lease.holder == ""
    second, other, ready, _ = leadership(store, "other")
    handing = asyncio.create_task(first.hand_over(6.0))
    await asyncio.sleep(0.05)
    await second.start()
    await until(lambda: ready.ready)
    assert not handing.done()  # both are ready for a while
    assert not other.standby
    async with asyncio.timeout(30.0):
        await handing
    await first.stop()
    await second.hand_over(0.0)
    assert store.lease.holder == ""
    await second.stop()


async def test_without_an_api_server_nobody_is_known_to_follow() -> None:
    store = Store()
    first, *_ = leadership(store)
    await first.start()
    await until(lambda: first.election.role is Role.LEADER)
    store.away = True
    async with asyncio.timeout(10.0):
        await first.hand_over(0.1)
    assert not await first.election.succeeded(0.05)
    await first.stop()


async def test_a_follower_hands_nothing_over() -> None:
    store = Store()
    first, *_ = leadership(store)
    second, *_ = leadership(store, "other")
    await first.start()
    await until(lambda: first.election.role is Role.LEADER)
    await second.start()
    async with asyncio.timeout(5.0):
        await second.hand_over(60.0)
    assert store.lease is not None
    assert store.lease.holder == "me"
    await first.stop()
    await second.stop()


async def test_who_lost_the_lease_serves_until_the_gateway_has_noticed() -> None:
    store = Store()
    first, pool, health, _ = leadership(store)
    await first.start()
    await until(lambda: health.ready)
    first._changed(Role.FOLLOWER)
    assert not health.ready
    assert not pool.standby
    await until(lambda: pool.standby)
    first._changed(Role.LEADER)
    assert not pool.standby
    first._changed(Role.FOLLOWER)
    first._changed(Role.LEADER)  # back before the grace was over
    await asyncio.sleep(0.1)
    assert not pool.standby
    first._changed(Role.FOLLOWER)
    await first.stop()


def test_names() -> None:
    assert lease_name("pool", "prod") == "epp-prod-pool.llm-d.ai"
    assert identity({"POD_NAME": "epp-1"}).startswith("epp-1_")
    assert identity({"POD_NAME": "epp-1"}) != identity({"POD_NAME": "epp-1"})
    assert identity({})


def test_a_request_on_standby_is_told_so() -> None:
    with pytest.raises(ServiceUnavailable, match="standby"):
        StandbyAdmission().admit(None, None)  # type: ignore[arg-type]
