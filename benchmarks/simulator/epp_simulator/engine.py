"""The batch of one simulated server: seats, the queue before them, adapters, and the time every token takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from epp_simulator.kv_cache import KVCache, Lease
from epp_simulator.latency import LatencyModel
from epp_simulator.options import SimOptions

# fmt: off
_WORDS = (
    "the", "a", "of", "to", "in", "is", "it", "for", "on", "with", "as", "that", "by", "at", "from", "this",
    "be", "are", "was", "which", "or", "an", "can", "will", "not", "all", "when", "use", "model", "server",
    "cache", "prefix", "token", "block", "queue", "request", "answer", "pool", "route", "score", "memory",
    "batch", "layer", "state", "value",
)
# fmt: on


class QueueFullError(Exception):
    """The waiting queue has reached its limit."""


@dataclass(slots=True, eq=False)
class Job:
    """One request in the engine. Times are seconds of `time.perf_counter`; `lora` "" is the base model."""

    tokens: Sequence[int]
    output_tokens: int
    lora: str = ""
    cache_salt: str = ""
    prompt_text: str = ""
    arrived: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    generated: int = 0
    lease: Lease = field(default_factory=Lease)
    seat: asyncio.Future[None] | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the cache."""
        return self.lease.cached_tokens


class Engine:
    """Admits jobs to `max-num-seqs` seats in order of arrival; an adapter needs one of `max-loras` slots."""

    def __init__(self, options: SimOptions, seed: int) -> None:
        self.options = options
        self.rng = random.Random(seed)
        self.latency = LatencyModel(options, self.rng)
        self.cache = KVCache(options.kv_cache_size, options.block_size)
        self.running: set[Job] = set()
        self.waiting: deque[Job] = deque()

    @property
    def running_loras(self) -> Counter[str]:
        """Adapters of running jobs."""
        return Counter(job.lora for job in self.running if job.lora)

    @property
    def waiting_loras(self) -> Counter[str]:
        """Adapters of waiting jobs."""
        return Counter(job.lora for job in self.waiting if job.lora)

    def output_length(self, max_tokens: int | None, *, ignore_eos: bool) -> int:
        """A plausible answer length: six buckets of 20/30/20/5/10/15 % over the limit; about 40 without a limit."""
        if max_tokens is None:
            return max(1, min(self.options.max_model_len, round(self.rng.gauss(40, 20))))
        if ignore_eos or max_tokens <= 6:
            return max_tokens
        bucket = self.rng.choices(range(6), weights=(20, 30, 20, 5, 10, 15))[0]
        if bucket == 5:
            return max_tokens
        width = max_tokens / 6
        return max(1, round(self.rng.uniform(bucket * width, (bucket + 1) * width)))

    def words(self, job: Job) -> list[str]:
        """The text of the answer, one piece per token."""
        if self.options.mode == "echo" and job.prompt_text:
            pieces = [word + " " for word in job.prompt_text.split()]
            return (pieces * (job.output_tokens // max(1, len(pieces)) + 1))[: job.output_tokens] or [" "]
        return [self.rng.choice(_WORDS) + " " for _ in range(job.output_tokens)]

    @asynccontextmanager
    async def seat(self, job: Job) -> AsyncIterator[None]:
        """Wait for a seat; the job runs inside the block. Raises `QueueFullError`."""
        job.arrived = time.perf_counter()
        if self._has_room(job) and not self.waiting:
            self._start(job)
        else:
            if len(self.waiting) >= self.options.max_waiting_queue_length:
                raise QueueFullError
            job.seat = asyncio.get_running_loop().create_future()
            self.waiting.append(job)
            try:
                await job.seat
            except asyncio.CancelledError:
                self._forget(job)
                raise
        try:
            yield
        finally:
            self._forget(job)

    async def prefill(self, job: Job) -> None:
        """Until the first token."""
        await asyncio.sleep(self.latency.prefill(len(job.tokens), job.cached_tokens, len(self.running)))
        job.first_token = time.perf_counter()
        job.generated = 1

    async def next_token(self, job: Job) -> None:
        """Until one more token. Sleeps are steered by the clock, so that late wake-ups do not add up."""
        gap = self.latency.token_gap(len(self.running))
        if gap > 0:
            await asyncio.sleep(gap)
        job.generated += 1
        if self.options.enable_kvcache and job.generated % self.options.block_size == 0:
            self.cache.grow(job.lease, job.generated)

    def _has_room(self, job: Job) -> bool:
        if len(self.running) >= self.options.max_num_seqs:
            return False
        loras = self.running_loras
        return not job.lora or job.lora in loras or len(loras) < self.options.max_loras

    def _start(self, job: Job) -> None:
        job.started = time.perf_counter()
        self.running.add(job)
        if self.options.enable_kvcache:
            job.lease = self.cache.begin(job.tokens, f"{job.lora}\0{job.cache_salt}")

    def _forget(self, job: Job) -> None:
        if job in self.running:
            self.running.discard(job)
            if self.options.enable_kvcache:
                self.cache.end(job.lease)
        elif job in self.waiting:
            self.waiting.remove(job)
        for candidate in list(self.waiting):
            if len(self.running) >= self.options.max_num_seqs:
                break
            if self._has_room(candidate) and candidate.seat is not None and not candidate.seat.done():
                self.waiting.remove(candidate)
                self._start(candidate)
                candidate.seat.set_result(None)
