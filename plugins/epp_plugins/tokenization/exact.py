"""Exact token ids within a budget: what both backends share.

A request whose body was tokenized before is answered at once. Another one waits for at most the budget; then, and when
the backend fails, it goes on with an estimate, while the answer may still come and be kept for the next. Equal bodies
under way are tokenized once. What is under way is bounded in number and bytes, what is kept in bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable

from epp.api import InferenceRequest, PluginContext
from epp.telemetry.logs import RateLimitedLog
from epp_plugins.tokenization.backend import Backend
from epp_plugins.tokenization.bounded import BoundedCache
from epp_plugins.tokenization.breaker import Breaker
from epp_plugins.tokenization.exact_metrics import ExactMetrics
from epp_plugins.tokenization.tokenized import Reason, TokenizationError, Tokenized

MAX_PENDING = 64
MAX_PENDING_BYTES = 64 << 20

HASHED = 1 << 20
"""Longer bodies are not kept: hashing them would hold up others, and each would push out a thousand shorter ones."""

SLOW_BELOW = 64 << 10
"""Only bodies up to this many bytes tell, by exceeding the budget, that the backend is slow: longer ones may."""

WARM_UP_TRIES = 24
WARM_UP_PAUSE = 5.0


class ExactPrompts:
    """`tokenize(request)`: the ids, None for an estimate, or something to wait for that ends in one of both."""

    def __init__(
        self,
        backend: Backend,
        context: PluginContext,
        kind: str,
        *,
        budget: float,
        cache_bytes: int,
        pause: float = WARM_UP_PAUSE,
    ) -> None:
        self._backend = backend
        self._budget = budget
        self._clock = context.clock
        self._name = context.name
        self._log = RateLimitedLog(context.log, context.clock)
        self._pause = pause
        self._cache: BoundedCache[bytes, Tokenized] = BoundedCache(cache_bytes)
        self._under_way: dict[bytes, asyncio.Task[Tokenized]] = {}
        self._tasks: set[asyncio.Task[Tokenized]] = set()
        self._pending_bytes = 0
        self._breaker = Breaker(context.clock)
        self._warm_up: asyncio.Task[None] | None = None
        self.warm = False
        self.settled = False
        self.metrics = ExactMetrics(context.metrics, context.name, kind)

    async def start(self) -> None:
        """Open the backend and begin to warm it up."""
        await self._backend.start()
        self.metrics.degraded(True)
        self._warm_up = asyncio.create_task(self._warm(), name=f"{self._name} warm-up")

    async def stop(self) -> None:
        """Give up what is under way and close the backend."""
        tasks = [task for task in (self._warm_up, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._warm_up = None
        await self._backend.stop()

    @property
    def degraded(self) -> bool:
        """Whether requests get estimates because the backend does not work."""
        return not self.warm or self._breaker.open

    def state(self) -> dict[str, object]:
        """For `/debug/plugins/state`."""
        return {
            "degraded": self.degraded,
            "warm": self.warm,
            "pending": len(self._tasks),
            "cached": len(self._cache),
            "cachedBytes": self._cache.used,
        }

    def tokenize(self, request: InferenceRequest) -> Tokenized | Awaitable[Tokenized | None] | None:
        """Ids that are known at once; None: there will be none; otherwise wait for it, at most for the budget."""
        kind, body = request.payload.kind, request.body
        if not self._backend.handles(kind) or not body:
            return self._without(Reason.UNSUPPORTED)
        key = self._key(kind, body)
        if key is not None:
            known = self._cache.get(key)
            if known is not None:
                self.metrics.prompt("cache")
                return known
        if not self.warm:
            return self._without(Reason.UNAVAILABLE)
        try:
            inline = self._backend.inline(kind, body)
        except TokenizationError as error:
            return self._failed(error)
        if inline is not None:
            self._keep(key, inline)
            self.metrics.prompt("backend")
            return inline
        task = self._under_way.get(key) if key is not None else None
        if task is None:
            trial = self._breaker.open
            if not self._breaker.allows():
                return self._without(Reason.UNAVAILABLE)
            if len(self._tasks) >= MAX_PENDING or self._pending_bytes + len(body) > MAX_PENDING_BYTES:
                return self._without(Reason.OVERLOAD)
            task = self._begin(kind, body, key, request.span)
            if trial:
                return self._without(Reason.UNAVAILABLE)
        elif self._breaker.open:
            return self._without(Reason.UNAVAILABLE)
        return self._within_budget(task)

    def _key(self, kind: str, body: bytes) -> bytes | None:
        if len(body) > HASHED:
            return None
        # A digest that nobody can aim at: equal keys would give one client's ids to another's prompt.
        digest = hashlib.sha256(f"{kind}\0{self._backend.variant}\0".encode())
        digest.update(body)
        return digest.digest()

    def _begin(self, kind: str, body: bytes, key: bytes | None, span: object) -> asyncio.Task[Tokenized]:
        task = asyncio.create_task(self._run(kind, body, key, span), name=f"{self._name} tokenize")
        self._tasks.add(task)
        self._pending_bytes += len(body)
        if key is not None:
            self._under_way[key] = task

        def done(task: asyncio.Task[Tokenized]) -> None:
            self._tasks.discard(task)
            self._pending_bytes -= len(body)
            if key is not None:
                self._under_way.pop(key, None)
            if not task.cancelled():
                task.exception()  # looked at: asyncio would complain when nobody waits any more
            self.metrics.held(self._cache.used, len(self._tasks))

        task.add_done_callback(done)
        self.metrics.held(self._cache.used, len(self._tasks))
        return task

    async def _run(self, kind: str, body: bytes, key: bytes | None, span: object) -> Tokenized:
        began = self._clock()
        # A call that hangs must count as much as one that fails, and no later than the first request gave up on it.
        late = asyncio.get_running_loop().call_later(self._budget, self._late, len(body))
        try:
            made = await self._backend.tokenize(kind, body, span)
        except TokenizationError as error:
            self._over(late, error)
            raise
        except Exception as error:
            failure = TokenizationError(Reason.FAILED, f"{type(error).__name__}: {error}")
            self._over(late, failure)
            raise failure from error
        finally:
            late.cancel()
            self.metrics.took(self._clock() - began)
        self._over(late, None)
        self._keep(key, made)
        return made

    def _late(self, size: int) -> None:
        if size <= SLOW_BELOW:
            self._breaker.failed()
            self.metrics.degraded(self.degraded)

    def _over(self, late: asyncio.TimerHandle, error: TokenizationError | None) -> None:
        """A call ended. What came late has been counted as such; a refusal says that the backend works."""
        if error is not None:
            self._told(error)
        in_time = late.when() > asyncio.get_running_loop().time()
        if error is not None and error.reason is Reason.FAILED:
            if in_time:
                self._breaker.failed()
        elif in_time:
            self._breaker.succeeded()
        self.metrics.degraded(self.degraded)

    async def _within_budget(self, task: asyncio.Task[Tokenized]) -> Tokenized | None:
        # Not wait_for: the task goes on, for its answer is worth keeping and others may wait for it.
        await asyncio.wait({task}, timeout=self._budget)
        if not task.done():
            self._log.log(
                logging.WARNING,
                "budget",
                "%s: tokenizing takes longer than %g s; token ids are estimated",
                self._name,
                self._budget,
            )
            return self._without(Reason.OVER_BUDGET)
        try:
            made = task.result()
        except TokenizationError as error:
            return self._without(error.reason)
        except asyncio.CancelledError:
            return self._without(Reason.UNAVAILABLE)
        self.metrics.prompt("backend")
        return made

    def _keep(self, key: bytes | None, made: Tokenized) -> None:
        if key is not None:
            self._cache.put(key, made, made.size)
            self.metrics.held(self._cache.used, len(self._tasks))

    def _without(self, reason: Reason) -> Tokenized | None:
        """Always None: counted, and to be estimated."""
        self.metrics.error(reason)
        self.metrics.prompt("estimate")
        return None

    def _failed(self, error: TokenizationError) -> Tokenized | None:
        self._told(error)
        return self._without(error.reason)

    def _told(self, error: TokenizationError) -> None:
        level = logging.WARNING if error.reason is Reason.FAILED else logging.INFO
        self._log.log(level, error.reason.value, "%s: token ids are estimated: %s", self._name, error)

    async def _warm(self) -> None:
        """Until the first success. After `WARM_UP_TRIES` readiness waits no longer, and requests get estimates."""
        tries = 0
        while True:
            tries += 1
            try:
                await self._backend.trial()
            except TokenizationError as error:
                self._log.log(
                    logging.WARNING,
                    "warm-up",
                    "%s: the tokenizer does not work yet (try %d): %s",
                    self._name,
                    tries,
                    error,
                )
            else:
                self.warm = self.settled = True
                self.metrics.degraded(False)
                return
            if tries == WARM_UP_TRIES:
                self.settled = True
            await asyncio.sleep(self._pause)
