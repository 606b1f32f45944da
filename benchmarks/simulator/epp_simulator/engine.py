"""The batch of one simulated engine: seats, the queue before them, adapters, and the time every token takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from epp_simulator.block_hash import BlockChain
from epp_simulator.kv_cache import KVCache, Lease
from epp_simulator.kv_events import Event
from epp_simulator.latency import LatencyModel
from epp_simulator.options import SimOptions
from epp_simulator.prompts import Prompt
from epp_simulator.tokens import number, pieces

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
    """One request in the engine. Times are seconds of `time.perf_counter`; `lora` "" is the base model.

    `answer`: the text of each token to come; `lease` None: not scheduled yet. `remote_tokens` of the prompt were read
    by another server, which had `remote_cached_tokens` of them; `stays_for_decode`: another server goes on from here.
    """

    prompt: Prompt
    answer: Sequence[str]
    lora: str = ""
    cache_salt: str = ""
    session: str | None = None
    arrived: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    generated: int = 0
    lease: Lease | None = None
    remote_tokens: int = 0
    remote_cached_tokens: int = 0
    stays_for_decode: bool = False
    chain: BlockChain = field(init=False)
    seat: asyncio.Future[None] | None = None

    def __post_init__(self) -> None:
        self.chain = BlockChain(list(self.prompt.tokens), self.lora, self.cache_salt, self.prompt.media, self.session)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt.tokens)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the cache."""
        return self.lease.cached_tokens if self.lease else 0

    @property
    def answer_tokens(self) -> list[int]:
        """Ids of what was generated so far."""
        return [number(piece) for piece in self.answer[: self.generated]]


class Engine:
    """Admits jobs to `max-num-seqs` seats in order of arrival; an adapter needs one of `max-loras` slots."""

    def __init__(self, options: SimOptions, seed: int, rank: int = 0) -> None:
        self.options = options
        self.rank = rank
        self.publish: Callable[[Sequence[Event]], None] | None = None
        self.rng = random.Random(seed)
        self.latency = LatencyModel(options, self.rng)
        self.cache = KVCache(
            options.kv_cache_size - 1,  # vLLM keeps one as a null block
            options.block_size,
            seed=options.hash_seed,
            cpu_size=options.kv_cpu_cache_size,
            groups=options.groups,
            record=options.events.publishes,
        )
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

    def answer(self, prompt: Prompt, length: int) -> list[str]:
        """The text of an answer, one piece per token."""
        if self.options.mode == "echo" and prompt.text:
            said = pieces(prompt.text)
            return (said * (length // len(said) + 1))[:length]
        # No space at the beginning: clients strip it, and the next turn of a conversation would not match the cache.
        return [(" " if position else "") + self.rng.choice(_WORDS) for position in range(length)]

    @asynccontextmanager
    async def seat(self, job: Job) -> AsyncIterator[None]:
        """Wait for a seat; the job runs inside the block. Raises `QueueFullError`."""
        job.arrived = time.perf_counter()
        if self._has_room(job) and not self.waiting and self._has_blocks(job):
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
        loaded = job.lease.loaded_tokens if job.lease else 0
        known = max(job.cached_tokens, min(job.remote_tokens, job.prompt_tokens - 1))
        seconds = self.latency.prefill(job.prompt_tokens, known, len(self.running), loaded)
        if job.remote_tokens:
            seconds += self.latency.transfer(job.remote_tokens)
        await asyncio.sleep(seconds)
        job.first_token = time.perf_counter()
        job.generated = 1
        self._step()

    async def next_token(self, job: Job) -> None:
        """Until one more token. Sleeps are steered by the clock, so that late wake-ups do not add up."""
        gap = self.latency.token_gap(len(self.running))
        if gap > 0:
            await asyncio.sleep(gap)
        if job.lease is not None:
            # The token before this one was computed: the last one of an answer never is, nor cached.
            self.cache.advance(job.lease, [number(job.answer[job.generated - 1])])
            self._step()
        job.generated += 1

    def _step(self) -> None:
        """A step of the engine is over: tell what happened to the cache."""
        events = self.cache.take_events()
        if events and self.publish is not None:
            self.publish(events)

    def _has_room(self, job: Job) -> bool:
        if len(self.running) >= self.options.max_num_seqs:
            return False
        loras = self.running_loras
        return not job.lora or job.lora in loras or len(loras) < self.options.max_loras

    def _has_blocks(self, job: Job) -> bool:
        # A request that would never fit runs alone.
        return not self.options.enable_kvcache or not self.running or self.cache.has_room(job.chain)

    def _start(self, job: Job) -> None:
        job.started = time.perf_counter()
        self.running.add(job)
        if self.options.enable_kvcache:
            job.lease = self.cache.begin(job.chain)

    def _forget(self, job: Job) -> None:
        if job in self.running:
            self.running.discard(job)
            if job.lease is not None:
                self.cache.end(job.lease)
            if not job.first_token:
                self._step()  # the step in which it was scheduled goes on without it
        elif job in self.waiting:
            self.waiting.remove(job)
        for candidate in list(self.waiting):
            if len(self.running) >= self.options.max_num_seqs:
                break
            if self._has_room(candidate) and candidate.seat is not None and not candidate.seat.done():
                if not self._has_blocks(candidate):
                    break  # who waits for memory is not overtaken, or long prompts would starve
                self.waiting.remove(candidate)
                self._start(candidate)
                candidate.seat.set_result(None)
