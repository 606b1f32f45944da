"""A prefix index in Redis or Valkey beside the local one: what this picker learns goes in, what it lacks comes out.

Nobody waits for the server. Events are queued and written by one task, in batches; a lookup has a time budget and ends
without an answer when that is over. A server that is down or slow is left alone for a while (`Breaker`), found again by
the writing task, and costs meanwhile what could not be kept in the bounded queue. What was half written when it went
away is written again: every operation can be repeated.

The entries of an endpoint are removed when it clears its cache, restarts or leaves the pool; what nobody is left to
remove goes when its time to live is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence

from epp.api.plugin import Clock
from epp.kvevents.events import AllBlocksCleared, KVEvent
from epp.prefixcache.precise.hashing import BlockHasher, Keys
from epp.prefixcache.precise.ingestion import MAX_BLOCK_SIZE, MAX_BLOCK_SIZES
from epp.prefixcache.shared import layout
from epp.prefixcache.shared.breaker import Breaker, pause
from epp.prefixcache.shared.layout import CHUNK, packed
from epp.prefixcache.shared.matching import Reach, Walk
from epp.prefixcache.shared.pending import Pending
from epp.prefixcache.shared.server import Server, unreachable
from epp.prefixcache.shared.settings import SharedSettings, SharedStats
from epp.prefixcache.shared.writer import Writer

CONNECTIONS = 16
"""Lookups at a time, each with its own connection; beyond, the local answer stands."""

CLIENT_TIMEOUT = 1.0
"""Seconds for an exchange; whoever waits for a lookup waits only for its budget."""

PING_INTERVAL = 1.0
_GATHER = 0.02  # seconds that events wait for others: large batches cost less
_INSIST = 0.1
_QUIET = 60.0
_FIRST = 16  # blocks of a lookup's first question: many prompts are known to nobody

Found = Mapping[str, Reach]
Chains = Mapping[int, Sequence[Keys]]
"""Keys of the blocks of each prompt of a request, by block size."""


class SharedIndex:
    """The shared index as one picker sees it. An `EventSink`; event loop only.

    `server` is used from `start` to `stop`. `hasher` makes the keys; its seed chooses the part of the server's names
    that is used. `observe` is told the seconds of every lookup that was sent.
    """

    def __init__(
        self,
        server: Server,
        hasher: BlockHasher,
        settings: SharedSettings,
        *,
        clock: Clock,
        rng: random.Random,
        log: logging.Logger,
        name: str,
        observe: Callable[[float], None] | None = None,
    ) -> None:
        self.up = False
        self.block_sizes: list[int] = []
        self.stats = SharedStats()
        self.pending = Pending(settings.most_pending_bytes)
        self.settings = settings
        self._server = server
        self._prefix = layout.prefix(hasher.seed)
        self._writer = Writer(server, hasher, self._prefix, settings.ttl)
        self._clock = clock
        self._rng = rng
        self._log = log
        self._name = name
        self._observe = observe
        self._breaker = Breaker(rng)
        self._heard: set[str] = set()
        self._waiting = asyncio.Event()
        self._writing = False
        self._task: asyncio.Task[None] | None = None
        self._lookups: set[asyncio.Task[None]] = set()
        self._warned_at: dict[str, float] = {}  # a few texts

    # What the events tell

    def apply_many(self, batches: Sequence[tuple[str, Sequence[KVEvent]]]) -> None:
        """Queue the events of several endpoints."""
        for endpoint, events in batches:
            self.apply(endpoint, events)

    def apply(self, endpoint: str, events: Sequence[KVEvent]) -> None:
        """Queue the events."""
        if self.settings.read_only:
            return
        self._heard.add(endpoint)
        self.pending.add(endpoint, events)
        self._waiting.set()

    def clear(self, endpoint: str) -> None:
        """What this picker has told of the endpoint is outdated.

        Before it has told anything there is nothing to take back: at its start a picker follows servers that it does
        not know yet, and what others have written of them is what it needs.
        """
        if endpoint in self._heard:
            self._heard.discard(endpoint)
            self.pending.add(endpoint, [AllBlocksCleared()])
            self._waiting.set()

    def remove(self, endpoint: str) -> None:
        """The endpoint left the pool: whoever has written its entries, they go."""
        if not self.settings.read_only:
            self._heard.add(endpoint)
            self.clear(endpoint)

    @property
    def settled(self) -> bool:
        """Nothing waits and nothing is on its way: all that it was told is written, or counted as lost."""
        return not (self._writing or self.pending.stale or len(self.pending))

    # Lifecycle

    def start(self) -> None:
        """Connect, and write from now on."""
        self._waiting.set()
        self._task = asyncio.create_task(self._run(), name=f"{self._name} shared index")

    async def stop(self) -> None:
        """End at once; what is still queued is not written."""
        tasks = set(self._lookups)
        if self._task is not None:
            tasks.add(self._task)
        while tasks:
            for task in tasks:
                task.cancel()
            # Again and again: redis-py loses a cancellation that comes before it looks at a connection (timeout 0).
            _, tasks = await asyncio.wait(tasks, timeout=_INSIST)
        self._task = None
        self.up = False
        await self._server.close()

    async def _run(self) -> None:
        failures = 0
        asked_at = self._clock() - PING_INTERVAL
        while True:
            try:
                async with asyncio.timeout(PING_INTERVAL):
                    await self._waiting.wait()
                    await asyncio.sleep(_GATHER)
            except TimeoutError:
                pass
            try:
                if not self.up or self._clock() - asked_at >= PING_INTERVAL:
                    await self._ask_sizes()
                    asked_at = self._clock()
                self._is_up(True)
                self._waiting.clear()
                while not self.settled:
                    self._writing = True
                    try:
                        await self._write_some()
                    finally:
                        self._writing = False
                failures = 0
            except Exception as error:
                self.stats.errors += 1
                if unreachable(error):
                    self._is_up(False, error)
                else:
                    self._say("cannot be used: %s", error)
                if not self.settled:
                    self._waiting.set()
                await asyncio.sleep(pause(failures, self._rng))
                failures += 1

    async def _ask_sizes(self) -> None:
        """Whether the server answers, and which block sizes the engines have."""
        told = {int(name) for name in await self._server.members(self._prefix + "sizes") if name.isdigit()}
        self.block_sizes = sorted(size for size in told if 0 < size <= MAX_BLOCK_SIZE)[:MAX_BLOCK_SIZES]

    async def _write_some(self) -> None:
        pending, stats = self.pending, self.stats
        if pending.stale:
            stale = list(pending.stale)
            stats.cleared += await self._writer.clear(stale)
            pending.stale.difference_update(stale)
        batch = pending.take()
        try:
            cleared = [operation.endpoint for operation in batch if isinstance(operation.event, AllBlocksCleared)]
            if cleared:
                stats.cleared += await self._writer.clear(cleared)
            elif batch:
                stats.add(await self._writer.write(batch))
        except Exception as error:
            if unreachable(error):
                pending.put_back(batch)
            else:
                stats.refused += sum(_blocks(operation.event) for operation in batch)
                pending.distrust(batch)
            raise

    def _is_up(self, up: bool, error: Exception | None = None) -> None:
        if up and not self.up:
            self._log.info("%s: the shared index is reached", self._name)
            self._breaker.succeeded()
        elif not up:
            self._say("cannot be reached, the local one goes on alone: %s", error)
        self.up = up

    def _say(self, text: str, *values: object) -> None:
        now = self._clock()
        if now - self._warned_at.get(text, -_QUIET) >= _QUIET:
            self._warned_at[text] = now
            self._log.warning("%s: the shared index " + text + " (said once a minute)", self._name, *values)

    # Reading

    async def lookup(self, chains: Chains) -> dict[int, list[Found]] | None:
        """How far each endpoint's cache reaches into each prompt, by block size.

        None: no answer within the budget. Answers that came in time count, also when more were to come.
        """
        now = self._clock()
        if not self.up or not self._breaker.allows(now):
            return self._counted("down", None)
        if len(self._lookups) >= CONNECTIONS:
            return self._counted("busy", None)
        weights = self.settings.weights
        walks = {size: [Walk(weights) for _ in prompts] for size, prompts in chains.items()}
        task = asyncio.create_task(self._walk(chains, walks), name=f"{self._name} lookup")
        self._lookups.add(task)
        task.add_done_callback(self._ended)
        # The exchange goes on when the budget is over: to break it off would cost a connection each time.
        await asyncio.wait({task}, timeout=self.settings.budget)
        if self._observe is not None:
            self._observe(self._clock() - now)
        # Copied, because the walk may go on.
        found: dict[int, list[Found]] = {
            size: [{name: Reach(reach.blocks, reach.weighted) for name, reach in walk.reach.items()} for walk in own]
            for size, own in walks.items()
        }
        hit = any(each for own in found.values() for each in own)
        if not task.done():
            self._breaker.failed(self._clock())
            return self._counted("partial", found) if hit else self._counted("late", None)
        if task.cancelled() or task.exception() is not None:
            self._breaker.failed(self._clock())
            return self._counted("failed", None)
        self._breaker.succeeded()
        return self._counted("hit" if hit else "miss", found)

    def _counted(self, outcome: str, found: dict[int, list[Found]] | None) -> dict[int, list[Found]] | None:
        self.stats.lookups[outcome] = self.stats.lookups.get(outcome, 0) + 1
        return found

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._lookups.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._say("did not answer a lookup: %s", error)

    async def _walk(self, chains: Chains, walks: Mapping[int, Sequence[Walk]]) -> None:
        left = self.settings.most_blocks
        for size, prompts in chains.items():
            for all_keys, walk in zip(prompts, walks[size], strict=True):
                keys = all_keys[:left]
                left -= len(keys)
                if len(keys):
                    first, rest = keys[:_FIRST], keys[_FIRST:]
                    walk.take(await self._server.run(layout.LOOKUP, self._prefix, packed(first)), len(first))
                    if len(rest) and not walk.ended:
                        await self._walk_on(rest, walk)

    async def _walk_on(self, keys: Keys, walk: Walk) -> None:
        """The rest in one go: a script that meets a gap at once costs next to nothing."""
        parts = [keys[begin : begin + CHUNK] for begin in range(0, len(keys), CHUNK)]
        answers = await self._server.run_all([(layout.LOOKUP, self._prefix, packed(part)) for part in parts])
        for part, answer in zip(parts, answers, strict=True):
            if not walk.ended:
                walk.take(answer, len(part))


def _blocks(event: KVEvent) -> int:
    return 0 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
