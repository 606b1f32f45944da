"""`--ha-enable-leader-election`: one of several replicas serves, the others are warm, not ready, and refuse.

A replica that loses the lease to another serves for `STEP_DOWN_SECONDS` more: the gateway needs a moment to see that it
is not ready any more. One that drains gives the lease back at once, stays ready until the gateway knows the next one,
and serves until the drain is over.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from epp.api.plugin import Clock
from epp.director.pool import Pool
from epp.kubernetes.leader_election import ElectionSettings, LeaderElection, Role
from epp.kubernetes.lease import LeaseStore
from epp.telemetry.metrics import Registry
from epp.transport.health import HealthState

STEP_DOWN_SECONDS = 10.0


def lease_name(pool: str, namespace: str) -> str:
    """As llm-d-router names it, so that both kinds of picker can stand by for each other during a migration."""
    return f"epp-{namespace}-{pool}.llm-d.ai"


def identity(environment: Mapping[str, str] = os.environ) -> str:
    """Unique per process: a container that restarts in its pod is another candidate."""
    return f"{environment.get('POD_NAME') or socket.gethostname()}_{uuid.uuid4()}"


class Leadership:
    """The election's consequences: readiness, admission, metrics."""

    def __init__(
        self,
        store: LeaseStore,
        pool: Pool,
        health: HealthState,
        registry: Registry,
        *,
        clock: Clock,
        rng: random.Random,
        name: str = "",
        settings: ElectionSettings | None = None,
        step_down_seconds: float = STEP_DOWN_SECONDS,
        synced: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pool = pool
        self._health = health
        self._step_down_seconds = step_down_seconds
        self._stepping_down: asyncio.TimerHandle | None = None

        def eligible() -> bool:
            return synced() and pool.ready()

        self.election = LeaderElection(
            store,
            name or identity(),
            clock=clock,
            wall_clock=lambda: datetime.now(UTC),
            rng=rng,
            changed=self._changed,
            settings=settings,
            eligible=eligible,
        )
        election = self.election
        registry.sampled_gauge(
            "leader", "1 on the replica that serves.", (), lambda: [((), float(election.role is Role.LEADER))]
        )
        registry.sampled_gauge(
            "leader_election_eligible",
            "1 on a replica that could serve: the leader, and those that are ready to follow it.",
            (),
            lambda: [((), float(eligible()))],
        )
        registry.sampled_gauge(
            "leader_election_degraded",
            "1 while the API server has not answered for as long as a lease lasts: who leads is not known.",
            (),
            lambda: [((), float(election.degraded))],
        )
        registry.sampled_gauge(
            "leader_election_failures",
            "Attempts that did not reach the API server.",
            (),
            lambda: [((), election.failures)],
        )

    async def start(self) -> None:
        """On standby until the lease is ours."""
        self._pool.stand_by(True)
        await self.election.start()

    async def hand_over(self, patience: float) -> None:
        """The drain begins: give the lease back, so that the next leader need not wait for it to run out.

        The leader stays ready until another one leads and the gateway has had time to see that: otherwise there would
        be a moment in which it knows of nobody. `patience`: seconds at most, two thirds of them for a successor.
        """
        leads = self.election.role is Role.LEADER
        await self.election.release()
        if leads and await self.election.succeeded(patience * 2 / 3):
            await asyncio.sleep(patience / 3)

    async def stop(self) -> None:
        """The end."""
        if self._stepping_down is not None:
            self._stepping_down.cancel()
            self._stepping_down = None
        await self.election.stop()

    def _changed(self, role: Role) -> None:
        if self._stepping_down is not None:
            self._stepping_down.cancel()
            self._stepping_down = None
        if role is Role.LEADER:
            self._pool.stand_by(False)
        else:
            loop = asyncio.get_running_loop()
            self._stepping_down = loop.call_later(self._step_down_seconds, self._pool.stand_by, True)
        self._health.update(leader=role is Role.LEADER)
