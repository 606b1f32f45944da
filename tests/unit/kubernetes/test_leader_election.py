"""Who leads, in a time that the test moves."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.kubernetes.leader_election import ElectionSettings, LeaderElection, Role
from epp.kubernetes.lease import Lease, LeaseConflict, from_object, to_object

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Store:
    """One lease with optimistic locking, as the API server keeps it."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.version = 0
        self.down = False
        self.hangs = False

    async def get(self) -> Lease | None:
        await self._answer()
        return self.lease

    async def create(self, lease: Lease) -> Lease:
        await self._answer()
        if self.lease is not None:
            raise LeaseConflict
        return self._store(lease)

    async def update(self, lease: Lease) -> Lease:
        await self._answer()
        if self.lease is None or lease.version != self.lease.version:
            raise LeaseConflict
        return self._store(lease)

    def _store(self, lease: Lease) -> Lease:
        self.version += 1
        self.lease = msgspec.structs.replace(lease, version=str(self.version))
        return self.lease

    async def _answer(self) -> None:
        if self.down:
            raise ConnectionRefusedError("refused")
        if self.hangs:
            await asyncio.Event().wait()


class Cluster:
    """Replicas over one store, and the time."""

    def __init__(self, count: int, settings: ElectionSettings | None = None) -> None:
        self.now = 100.0
        self.store = Store()
        self.changes: list[tuple[str, Role]] = []
        self.replicas = [self._replica(f"picker-{n}", settings) for n in range(count)]

    def _replica(self, name: str, settings: ElectionSettings | None) -> LeaderElection:
        return LeaderElection(
            self.store,
            name,
            clock=lambda: self.now,
            wall_clock=lambda: EPOCH + timedelta(seconds=self.now),
            rng=random.Random(1),
            changed=lambda role: self.changes.append((name, role)),
            settings=settings,
        )

    async def attempt(self, *numbers: int) -> None:
        for number in numbers:
            await self.replicas[number].attempt()

    @property
    def leaders(self) -> list[str]:
        return [replica.identity for replica in self.replicas if replica.role is Role.LEADER]


async def test_the_first_one_leads_and_stays() -> None:
    cluster = Cluster(3)
    for _ in range(20):
        await cluster.attempt(0, 1, 2)
        cluster.now += 2.0
    assert cluster.leaders == ["picker-0"]
    assert cluster.changes == [("picker-0", Role.LEADER)]
    lease = cluster.store.lease
    assert lease is not None
    assert (lease.transitions, lease.acquired) == (0, EPOCH + timedelta(seconds=100))
    assert lease.renewed == EPOCH + timedelta(seconds=138)
    assert cluster.replicas[2].holder == "picker-0"


async def test_a_silent_leader_is_followed_after_the_duration() -> None:
    cluster = Cluster(2)
    await cluster.attempt(0, 1)
    cluster.now += 14.9
    await cluster.attempt(1)
    assert cluster.leaders == ["picker-0"]
    cluster.now += 0.2
    await cluster.attempt(1)
    assert cluster.store.lease is not None
    assert cluster.store.lease.holder == "picker-1"
    assert cluster.store.lease.transitions == 1
    await cluster.attempt(0)  # the old one comes back
    assert cluster.leaders == ["picker-1"]


async def test_a_wrong_clock_of_the_holder_means_nothing() -> None:
    cluster = Cluster(2)
    await cluster.attempt(0)
    lease = cluster.store.lease
    assert lease is not None
    cluster.store._store(msgspec.structs.replace(lease, renewed=EPOCH - timedelta(days=3)))
    await cluster.attempt(1)
    assert cluster.leaders == ["picker-0"]


async def test_a_lease_given_back_is_free_at_once() -> None:
    cluster = Cluster(2)
    await cluster.attempt(0, 1)
    await cluster.replicas[0].release()
    await cluster.replicas[0].release()
    await cluster.attempt(1)
    assert cluster.store.lease is not None
    assert cluster.store.lease.holder == "picker-1"
    assert cluster.leaders == ["picker-0", "picker-1"]  # the first one drains: it still serves


async def test_a_follower_gives_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster(2)
    await cluster.attempt(0, 1)
    await cluster.replicas[1].stop()
    assert cluster.store.lease is not None
    assert cluster.store.lease.holder == "picker-0"
    cluster.store.down = True
    await cluster.replicas[0].stop()
    assert "run out" in caplog.text


async def test_a_leader_without_api_server_stays_until_it_sees_another() -> None:
    cluster = Cluster(2)
    await cluster.attempt(0, 1)
    cluster.store.down = True
    for _ in range(10):
        cluster.now += 2.0
        await cluster.attempt(0, 1)
    assert cluster.leaders == ["picker-0"]
    assert cluster.replicas[0].degraded
    assert cluster.replicas[0].failures == 10
    cluster.store.down = False
    await cluster.attempt(1)  # it has not seen a renewal for 20 s
    assert cluster.leaders == ["picker-0", "picker-1"]
    await cluster.attempt(0)
    assert cluster.leaders == ["picker-1"]
    assert not cluster.replicas[0].degraded


async def test_who_could_not_serve_leaves_the_lease_to_others() -> None:
    cluster = Cluster(2)
    ready = False
    cluster.replicas[0]._eligible = lambda: ready
    await cluster.attempt(0)
    assert cluster.store.lease is None
    await cluster.attempt(1, 0)
    assert cluster.leaders == ["picker-1"]
    assert cluster.replicas[0].holder == "picker-1"
    await cluster.replicas[1].release()
    await cluster.attempt(0)
    assert cluster.leaders == ["picker-1"]
    ready = True
    await cluster.attempt(0)
    assert cluster.store.lease is not None
    assert cluster.store.lease.holder == "picker-0"
    ready = False  # a plugin is not ready for a moment: no reason to give the lease away
    await cluster.attempt(0)
    assert cluster.store.lease.holder == "picker-0"


async def test_a_hanging_call_is_given_up() -> None:
    cluster = Cluster(1, ElectionSettings(request_timeout=0.01))
    cluster.store.hangs = True
    await cluster.attempt(0)
    assert cluster.replicas[0].failures == 1
    assert cluster.replicas[0].holder == ""


async def test_of_two_that_write_at_the_same_time_one_wins() -> None:
    cluster = Cluster(2)
    await asyncio.gather(*(replica.attempt() for replica in cluster.replicas))
    assert len(cluster.leaders) == 1
    cluster.now += 100.0
    cluster.replicas[0].role = cluster.replicas[1].role = Role.FOLLOWER
    await cluster.attempt(0, 1)
    assert len(cluster.leaders) == 1


async def test_it_tries_again_and_again() -> None:
    cluster = Cluster(1, ElectionSettings(lease_duration=1.0, retry_period=0.01))
    cluster.store.down = True
    await cluster.replicas[0].start()
    while cluster.replicas[0].failures < 3:  # noqa: ASYNC110 - the replica tells nobody
        await asyncio.sleep(0.01)
    cluster.store.down = False
    while not cluster.leaders:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await cluster.replicas[0].stop()
    assert cluster.store.lease is not None
    assert cluster.store.lease.holder == ""


@pytest.mark.parametrize("turns", range(8))
async def test_a_stop_that_comes_with_the_answer_is_heard(turns: int) -> None:
    """However many turns of the event loop a call has taken when the election is stopped."""
    cluster = Cluster(1, ElectionSettings(lease_duration=5.0, retry_period=0.01, request_timeout=1.0))
    answer = cluster.store._answer

    async def slowly() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await answer()

    cluster.store._answer = slowly  # type: ignore[method-assign]
    election = cluster.replicas[0]
    await election.start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(election.stop())), 5.0)
    assert election._task is None


async def test_the_next_attempt_comes_when_the_lease_runs_out() -> None:
    cluster = Cluster(2, ElectionSettings(lease_duration=15.0, retry_period=10.0))
    await cluster.attempt(0, 1)
    assert all(8.0 <= cluster.replicas[n]._pause() <= 12.0 for n in (0, 1))
    cluster.now += 12.0
    assert 3.0 < cluster.replicas[1]._pause() < 3.1
    assert 8.0 <= cluster.replicas[0]._pause() <= 12.0  # its own lease it renews as ever
    cluster.now += 4.0  # it has run out, and could not be taken
    assert 8.0 <= cluster.replicas[1]._pause() <= 12.0


async def test_who_can_serve_at_last_does_not_wait_for_the_next_attempt() -> None:
    able = False
    election = LeaderElection(
        Store(),
        "picker",
        clock=time.monotonic,
        wall_clock=lambda: EPOCH,
        rng=random.Random(1),
        changed=lambda role: None,
        settings=ElectionSettings(lease_duration=120.0, retry_period=60.0),
        eligible=lambda: able,
    )
    await election.start()
    await asyncio.sleep(0.2)
    assert election.role is Role.FOLLOWER
    able = True
    for _ in range(1000):
        if election.role is Role.LEADER:
            break
        await asyncio.sleep(0.01)
    assert election.role is Role.LEADER
    await election.stop()


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="retry period"):
        ElectionSettings(lease_duration=2.0, retry_period=2.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 20.0), st.booleans()), max_size=60))
def test_never_two_that_both_saw_themselves_last(steps: list[tuple[int, float, bool]]) -> None:
    """Whatever the order of attempts, pauses and hand-overs: who sees itself in the lease is its only holder."""

    async def run() -> None:
        cluster = Cluster(3)
        for number, pause, release in steps:
            cluster.now += pause
            await cluster.attempt(number)
            if release:
                await cluster.replicas[number].release()
            lease = cluster.store.lease
            assert lease is not None
            acting = cluster.replicas[number]
            if not release:
                assert (acting.role is Role.LEADER) == (lease.holder == acting.identity)
            elif acting.role is Role.LEADER:
                assert lease.holder != acting.identity

    asyncio.run(run())


def test_the_api_form_of_a_lease() -> None:
    lease = Lease("a", 15, EPOCH, EPOCH + timedelta(microseconds=5), 3, "77")
    document = to_object(lease, "epp-lock", "prod")
    assert document["spec"]["renewTime"] == "2026-01-01T00:00:00.000005Z"
    assert document["metadata"] == {"name": "epp-lock", "namespace": "prod", "resourceVersion": "77"}
    assert from_object(document) == lease
    assert "resourceVersion" not in to_object(msgspec.structs.replace(lease, version=""), "n", "ns")["metadata"]
    empty = from_object({"metadata": {"name": "x", "resourceVersion": "1"}})
    assert (empty.holder, empty.duration_seconds, empty.transitions) == ("", 0, 0)
