"""`approx-prefix-cache-producer`: how much of the prompt each endpoint probably still has in its KV cache.

What it does: hashes the prompt in blocks and looks the hashes up in an index of what was sent where
(`epp.prefixcache.approximate`); after the decision it records the prompt for the chosen endpoint, and for the prefill
endpoint where there is one. It asks the servers nothing, so it works with any engine.

When to use: with `prefix-cache-scorer`, `prefix-cache-affinity-filter` or whatever else reads prefix matches; it is
created by itself when one of them needs it. Several instances with different parameters (a GPU and a CPU tier, say)
have an index each and do not disturb each other.

Parameters: see `ApproxPrefixCacheParams`. A block is never smaller than 64 tokens, whatever is configured, as upstream.
With `autoTune` the block size is the one that most endpoints of the pool report (of equals the smallest), looked at
once a second, so that requests with different candidates agree on it; and the capacity of an endpoint is what its
server reports, `num_blocks * block_size` tokens, in blocks of ours (upstream takes the number of the server's blocks
for the number of its own, four times too many with vLLM's default).

A request with several prompts counts the blocks of all of them, each matched on its own. One request hashes at most
8192 blocks, also where the limits are set to 0 (unlimited): beyond half a million tokens a longer match decides
nothing. More than 2048 blocks are hashed in slices, so that other requests get their turn.

Metrics: `prefix_indexer_size` (blocks held, summed over the endpoints), `prefix_indexer_hit_ratio` and
`prefix_indexer_hit_bytes` (of the chosen endpoint, 4 bytes a token), and `prefix_indexer_bytes` (estimated memory of
the index, bounded by `maxIndexBytes`).

Failure behaviour: a request without a prompt gets no match, and consumers see that there is none. Hash collisions can
cost affinity, never correctness.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from epp.api import (
    PREFIX_CACHE_MATCH,
    TOKENIZED_PROMPT,
    DataKey,
    Endpoints,
    FloatArray,
    InferenceRequest,
    Params,
    PluginContext,
    PrefixMatch,
    Producer,
    SchedulingResult,
    publish_prefix_match,
)
from epp.prefixcache.approximate import ApproximateIndex
from epp.prefixcache.hashing import TOKEN_BYTES, BlockChain, media_marks, root_hash

MIN_BLOCK_SIZE = 64
"""Tokens; smaller blocks cost time and memory and tell hardly more."""

MAX_BLOCKS = 8192
SLICE_BLOCKS = 2048
"""Blocks hashed without a pause: 0.4 ms."""

DEFAULT_CAPACITY = 31250
TUNE_INTERVAL = 1.0
_STATE = "ApproxPrefixCacheState"
_MAX_DUMPED = 100


class ApproxPrefixCacheParams(Params, frozen=True):
    """Names and defaults of llm-d-router; `maxIndexBytes` is ours.

    `blockSizeTokens` holds where `autoTune` is off or no endpoint reports a block size; `blockSize` is its deprecated
    name. `maxPrefixTokensToMatch` limits each prompt; only if it is 0, `maxPrefixBlocksToMatch` does.
    `lruCapacityPerServer`: blocks per endpoint where it is not known from the server (0: the default).
    """

    auto_tune: Annotated[bool, Meta(description="block size and capacity as the servers report them")] = True
    block_size_tokens: Annotated[int, Meta(ge=1, description="tokens in a block, at least 64 in effect")] = 16
    block_size: Annotated[int, Meta(ge=1, description="deprecated name of blockSizeTokens")] | None = None
    max_prefix_blocks_to_match: Annotated[
        int, Meta(ge=0, description="blocks hashed of a prompt where maxPrefixTokensToMatch is 0; 0: no limit")
    ] = 2048
    max_prefix_tokens_to_match: Annotated[
        int, Meta(ge=0, description="tokens hashed of a prompt; 0: maxPrefixBlocksToMatch counts")
    ] = 131072
    lru_capacity_per_server: Annotated[
        int, Meta(ge=0, description="blocks per server where it does not report its capacity; 0: the default")
    ] = DEFAULT_CAPACITY
    max_index_bytes: Annotated[int, Meta(ge=1 << 20, description="memory of the whole index")] = 512 << 20


class _Prepared(msgspec.Struct, eq=False, gc=False):
    """What `on_picked` records: the hashes of each prompt, `total` of them."""

    paths: list[list[int]]
    total: int
    block_size: int


class ApproxPrefixCacheProducer(Producer[ApproxPrefixCacheParams]):
    """Publishes a `PrefixMatch` and learns from every decision."""

    type = "approx-prefix-cache-producer"
    stability = "stable"
    Params = ApproxPrefixCacheParams

    def __init__(self, params: ApproxPrefixCacheParams, context: PluginContext) -> None:
        super().__init__(params, context)
        if params.block_size is not None:
            context.log.warning(
                "%s: parameter blockSize is deprecated, use blockSizeTokens: %d", self.name, params.block_size
            )
        self._configured = params.block_size or params.block_size_tokens
        self._use_blocks_of(self._configured)
        self._tune_at = -math.inf
        self._table = context.table
        self._index = ApproximateIndex(params.max_index_bytes)
        self._table.on_removed(lambda row, _: self._index.forget(row))
        self._state = DataKey(_STATE, self.name)
        self._metrics = _Metrics(context.metrics, self.name) if context.metrics is not None else None

    @property
    def consumes(self) -> Sequence[DataKey]:
        return (DataKey(TOKENIZED_PROMPT, "token-producer"),)

    @property
    def produces(self) -> Sequence[DataKey]:
        return (DataKey(PREFIX_CACHE_MATCH, self.name),)

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> Awaitable[None] | None:
        """Inline up to 2048 blocks."""
        prompt = request.prompt
        if prompt is None or not prompt.data:
            return None
        if endpoints.now >= self._tune_at:
            self._tune(endpoints.now)
        block_size = self._block_size
        root = root_hash(request.target_model, request.payload.cache_salt)
        limit, left = self._limit, MAX_BLOCKS
        chains = []
        for number, data in enumerate(prompt.data):
            marks = None
            if prompt.features and not prompt.estimated:  # estimated ids of media are made from their hashes already
                marks = media_marks(prompt.features, number, block_size)
            chain = BlockChain(data, block_size, root, min(limit, left), marks)
            if chain.total:
                chains.append(chain)
                left -= chain.total
        if MAX_BLOCKS - left > SLICE_BLOCKS:
            return self._produce_in_slices(request, endpoints, chains, block_size)
        for chain in chains:
            chain.extend(chain.total)
        self._publish(request, endpoints, chains, block_size)
        return None

    async def _produce_in_slices(
        self, request: InferenceRequest, endpoints: Endpoints, chains: list[BlockChain], block_size: int
    ) -> None:
        budget = SLICE_BLOCKS
        for chain in chains:
            while done := chain.extend(budget):
                budget -= done
                if budget <= 0:
                    await asyncio.sleep(0)
                    budget = SLICE_BLOCKS
        self._publish(request, endpoints, chains, block_size)

    def _publish(
        self, request: InferenceRequest, endpoints: Endpoints, chains: list[BlockChain], block_size: int
    ) -> None:
        paths: list[list[int]] = []
        blocks: FloatArray | None = None
        total = 0
        for chain in chains:
            path = chain.hashes
            paths.append(path)
            total += len(path)
            matched = self._index.match(path, endpoints.rows)
            blocks = matched if blocks is None else blocks + matched
        if blocks is None:
            return
        request.attributes[self._state] = _Prepared(paths, total, block_size)
        publish_prefix_match(request, endpoints, self.name, PrefixMatch(blocks, blocks, total, block_size))

    def on_picked(self, request: InferenceRequest, result: SchedulingResult) -> None:
        """Record what the chosen endpoints will have in their caches."""
        prepared: _Prepared | None = request.attributes.pop(self._state, None)
        if prepared is None:
            return
        held = self._record(result.target.rows[0], prepared)
        prefill = result.prefill
        if prefill is not None:
            self._record(prefill.rows[0], prepared)
        if self._metrics is not None:
            self._metrics.picked(held, prepared.total, prepared.block_size, self._index)

    def dump_state(self) -> dict[str, Any]:
        """Size of the index, and the endpoints that hold most."""
        index = self._index
        held = [(index.held_by(row), row) for row in self._table.rows.tolist()]
        held.sort(key=lambda entry: (-entry[0], entry[1]))
        endpoints = self._table.endpoints
        return {
            "blockSizeTokens": self._block_size,
            "blocks": index.blocks,
            "heldBlocks": index.held_blocks,
            "runs": index.nodes,
            "bytes": index.size_bytes,
            "maxBytes": index.max_bytes,
            "blocksEvictedForBytes": index.evicted_for_bytes,
            "endpoints": {e.key: count for count, row in held[:_MAX_DUMPED] if (e := endpoints[row]) is not None},
            "endpointsTotal": len(held),
        }

    def _record(self, row: int, prepared: _Prepared) -> int:
        """Returns the matched blocks, before anything was recorded."""
        index, paths = self._index, prepared.paths
        capacity = self._capacity(row, prepared.block_size)
        if len(paths) == 1:
            return index.record(row, paths[0], capacity)
        rows = np.array([row], dtype=np.intp)
        held = sum(int(index.match(path, rows)[0]) for path in paths)
        for path in paths:
            index.record(row, path, capacity)
        return held

    def _use_blocks_of(self, tokens: int) -> None:
        """The size of a block from now on, and with it how many blocks of a prompt count."""
        params = self.params
        self._block_size = size = max(MIN_BLOCK_SIZE, tokens)
        if params.max_prefix_tokens_to_match:
            self._limit = params.max_prefix_tokens_to_match // size
        else:
            self._limit = params.max_prefix_blocks_to_match or MAX_BLOCKS

    def _tune(self, now: float) -> None:
        self._tune_at = now + TUNE_INTERVAL
        if not self.params.auto_tune:
            return
        sizes = self._table.columns["block_size"][self._table.rows]
        known, counts = np.unique(sizes[sizes >= 1], return_counts=True)  # ascending; NaN compares false
        if known.size:
            self._use_blocks_of(int(known[counts.argmax()]))
        else:
            self._use_blocks_of(self._configured)

    def _capacity(self, row: int, block_size: int) -> int:
        if self.params.auto_tune:
            columns = self._table.columns
            tokens: float = columns["num_blocks"].item(row) * columns["block_size"].item(row)
            if tokens >= block_size and tokens < math.inf:
                return int(tokens) // block_size
        return self.params.lru_capacity_per_server or DEFAULT_CAPACITY


class _Metrics:
    """The children of one instance, looked up once."""

    def __init__(self, registry: Any, name: str) -> None:
        labels = ("plugin_name", "plugin_type")
        values = (name, ApproxPrefixCacheProducer.type)
        self._size = registry.gauge(
            "prefix_indexer_size", "Blocks in the prefix index, summed over the endpoints.", labels
        ).labels(*values)
        self._bytes = registry.gauge(
            "prefix_indexer_bytes", "Estimated memory of the prefix index in bytes.", labels
        ).labels(*values)
        ratio = registry.histogram(
            "prefix_indexer_hit_ratio",
            "Share of the prompt's blocks that the chosen endpoint held.",
            [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
            labels,
        ).labels(*values)
        hit_bytes = registry.histogram(
            "prefix_indexer_hit_bytes",
            "Length of the prefix that the chosen endpoint held, in bytes (4 per token).",
            [0, *(16 << n for n in range(13))],
            labels,
        ).labels(*values)
        self._ratio = registry.tally(ratio)
        self._hit_bytes = registry.tally(hit_bytes)

    def picked(self, held: int, total: int, block_size: int, index: ApproximateIndex) -> None:
        self._ratio.observe(held / total)
        self._hit_bytes.observe(held * block_size * TOKEN_BYTES)
        self._size.set(index.held_blocks)
        self._bytes.set(index.size_bytes)
