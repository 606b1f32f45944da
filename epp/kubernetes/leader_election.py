"""Which of several replicas is active: the one that holds a Lease, by the rules of client-go's leader election.

A replica takes the lease when nobody holds it, or when it has watched it for as long as it lasts without seeing it
renewed. That is measured by the replica's own clock: clocks of different machines are never compared. The holder renews
it every `retry_period`; when it ends in good order it gives it back, and the next one need not wait.

One rule differs from client-go. A holder that cannot reach the API server any more goes on being the leader until it
sees somebody else hold the lease: two active pickers cost some accuracy, none at all costs every request. The state is
visible (`degraded`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto

import msgspec

from epp.api.plugin import Clock
from epp.kubernetes.lease import Lease, LeaseConflict, LeaseStore

log = logging.getLogger(__name__)

_LOOK = 0.1
"""Seconds between two looks of a replica that just starts at whether it could serve; the API server is not asked."""
_AFTER = 0.01
"""Seconds after the moment a lease runs out: timers may be a little early."""


class ElectionSettings(msgspec.Struct, frozen=True):
    """Seconds. Defaults are those of Kubernetes' own controllers.

    `lease_duration`: how long a lease lasts without renewal. `retry_period`: between two attempts to take or to renew
    it; an attempt comes sooner when a lease runs out. `request_timeout`: for one call of the API server; a call that
    hangs must not cost the lease.
    """

    lease_duration: float = 15.0
    retry_period: float = 2.0
    request_timeout: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_period < self.lease_duration:
            raise ValueError(
                f"a lease of {self.lease_duration:g} s cannot be kept with a renewal every {self.retry_period:g} s: "
                "set the retry period well below the duration"
            )


class Role(Enum):
    """`LEADER` serves, `FOLLOWER` waits."""

    LEADER = auto()
    FOLLOWER = auto()


class LeaderElection:
    """Runs between `start` and `stop`; `changed(role)` is called on the event loop when the role changes.

    `eligible`: whether this replica could serve. One that could not yet, having just started, leaves the lease to those
    that could; what it holds it keeps.
    """

    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        *,
        clock: Clock,
        wall_clock: Callable[[], datetime],
        rng: random.Random,
        changed: Callable[[Role], None],
        settings: ElectionSettings | None = None,
        eligible: Callable[[], bool] = lambda: True,
    ) -> None:
        self.identity = identity
        self.settings = settings or ElectionSettings()
        self.role = Role.FOLLOWER
        self.failures = 0
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng
        self._changed = changed
        self._eligible = eligible
        self._seen: Lease | None = None
        self._seen_at = 0.0
        self._reached_at = clock()
        self._task: asyncio.Task[None] | None = None

    @property
    def holder(self) -> str:
        """Who held the lease when it was last seen; "" nobody."""
        return self._seen.holder if self._seen is not None else ""

    @property
    def degraded(self) -> bool:
        """The API server has not answered for as long as a lease lasts: nobody knows who the leader is."""
        return self._clock() - self._reached_at > self.settings.lease_duration

    async def start(self) -> None:
        """Begin to try."""
        self._task = asyncio.create_task(self._run(), name="leader-election")

    async def stop(self) -> None:
        """Stop trying, and give the lease back if it is ours."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.release()

    async def release(self) -> None:
        """Give the lease back; the role stays, for who drains still serves. Nothing happens when it is not ours."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        seen = self._seen
        if self.role is not Role.LEADER or seen is None or seen.holder != self.identity:
            return
        # One second instead of none: the API refuses a duration of 0.
        freed = msgspec.structs.replace(seen, holder="", duration_seconds=1, renewed=self._wall_clock())
        try:
            async with asyncio.timeout(self.settings.request_timeout):
                self._observe(await self._store.update(freed))
            log.info("gave the lease back")
        except Exception as error:
            log.warning("could not give the lease back, it will run out: %s", error or type(error).__name__)

    async def succeeded(self, patience: float) -> bool:
        """After `release`: whether another replica has taken the lease within so many seconds."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        lease = await self._store.get()
                    except Exception as error:
                        log.warning("who leads now is not known: %s", error or type(error).__name__)
                        lease = None
                    if lease is not None and lease.holder not in ("", self.identity):
                        return True
                    await asyncio.sleep(self.settings.retry_period / 4)
        except TimeoutError:
            return False

    async def _run(self) -> None:
        while True:
            await self.attempt()
            await self._wait(self._pause())

    def _pause(self) -> float:
        """Seconds to the next attempt: the retry period, or less when the lease of another one runs out before."""
        pause = self.settings.retry_period * self._rng.uniform(0.8, 1.2)
        seen = self._seen
        if seen is None or seen.holder in ("", self.identity):
            return pause
        left = self._seen_at + seen.duration_seconds - self._clock()
        return min(pause, left + _AFTER) if left > 0 else pause

    async def _wait(self, seconds: float) -> None:
        """So long; less for a replica that could not serve and now can."""
        could = self._eligible()
        while seconds > 0:
            step = seconds if could else min(seconds, _LOOK)
            await asyncio.sleep(step)
            seconds -= step
            if not could and self._eligible():
                return

    async def attempt(self) -> None:
        """Try once to take or to renew the lease."""
        try:
            # Not `wait_for`: before Python 3.12 that loses a cancellation which comes together with the answer, and who
            # stops the election would wait for ever.
            async with asyncio.timeout(self.settings.request_timeout):
                held = await self._take_or_renew()
        except LeaseConflict:
            self._reached_at = self._clock()
            return  # somebody was faster; the next attempt sees who
        except Exception as error:
            self.failures += 1
            log.warning("the lease cannot be reached: %s", error or type(error).__name__)
            return
        self._reached_at = self._clock()
        self._become(Role.LEADER if held else Role.FOLLOWER)

    async def _take_or_renew(self) -> bool:
        now = self._wall_clock()
        lease = await self._store.get()
        if lease is not None:
            self._observe(lease)
        if (lease is None or lease.holder != self.identity) and not self._eligible():
            return False
        if lease is None:
            self._observe(await self._store.create(self._held(None, now)))
            return True
        if lease.holder != self.identity and lease.holder and not self._run_out(lease):
            return False
        self._observe(await self._store.update(self._held(lease, now)))
        return True

    def _held(self, before: Lease | None, now: datetime) -> Lease:
        """The lease in our hands."""
        again = before is not None and before.holder == self.identity
        return Lease(
            holder=self.identity,
            duration_seconds=max(1, round(self.settings.lease_duration)),
            acquired=before.acquired if before is not None and again else now,
            renewed=now,
            transitions=0 if before is None else before.transitions + (not again),
            version="" if before is None else before.version,
        )

    def _observe(self, lease: Lease) -> None:
        if lease != self._seen:
            self._seen, self._seen_at = lease, self._clock()

    def _run_out(self, lease: Lease) -> bool:
        return self._clock() >= self._seen_at + lease.duration_seconds

    def _become(self, role: Role) -> None:
        if role is self.role:
            return
        self.role = role
        log.info("now %s of %s", role.name.lower(), f"{self.holder or 'nobody'}")
        self._changed(role)
