"""`precise-prefix-cache-producer`: how much of the prompt each endpoint's KV cache holds, as the servers say.

What it does: follows the KV cache events of every server (`epp.kvevents`), keeps an exact index of their blocks
(`epp.prefixcache.precise`), and publishes for each request how far each candidate's cache reaches into the prompt.
When a server answers, its `cached_tokens` are compared with what was predicted.

When to use: with vLLM or SGLang that publish KV events, and a `token-producer` that makes real token ids (estimated
ones find nothing: they are counted, and said in the log once a minute). Name it in the consumers:
`prefixMatchInfoProducerName: precise-prefix-cache-producer`.

Parameters: see `PrecisePrefixCacheParams`. Blocks are kept at the size that the engine uses and matches reported in
blocks of `blockSizeTokens`, whole ones only. The base model has no name in the index; adapters are known by theirs,
from events and from the servers' metrics.

With `redisConfig` (or `valkeyConfig`) pickers share what they learn (`epp.prefixcache.shared`): the server is asked
about candidates of which this picker has not seen everything, within `lookupBudget`.

Metrics: `prefix_indexer_size`, `_bytes`, `_hit_ratio`, `_hit_bytes`, llm-d-router's `kv_cache_events_*`; with
`enableMetrics` also llm-d-router's `kv_cache_index_*`; `prefix_index_*` (with `enableMetrics`, and always
for what the bounds cost), `kv_event_*`, `prefix_prediction_error_tokens`, `prefix_index_shared_*` (with `redisConfig`).

Failure behaviour: a server that does not publish counts as holding nothing. Until the warm start is over, or its limit,
the plugin is not ready. A snapshot file that cannot be read or written is said in the log; the picker goes on without.
So it does without the server of `redisConfig`: the local index stands, and `prefix_index_shared_up` is 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np

from epp.api import (
    PREFIX_CACHE_MATCH,
    TOKENIZED_PROMPT,
    DataKey,
    Endpoint,
    EndpointExtractor,
    Endpoints,
    InferenceRequest,
    InferenceResponse,
    PluginContext,
    PrefixMatch,
    Producer,
    Prompt,
    SchedulingResult,
    prefix_match,
    publish_prefix_match,
)
from epp.datalayer.durations import seconds
from epp.kvevents.receiver import KVEventReceiver
from epp.kvevents.settings import ReceiverSettings
from epp.prefixcache.precise.hashing import Keys
from epp.prefixcache.precise.index import PreciseIndex
from epp_plugins.producers.precise_prefix_cache_check import Prediction, SelfCheck
from epp_plugins.producers.precise_prefix_cache_matching import MAX_TOKENS, Candidates, chains
from epp_plugins.producers.precise_prefix_cache_metrics import PreciseMetrics
from epp_plugins.producers.precise_prefix_cache_params import PrecisePrefixCacheParams
from epp_plugins.producers.precise_prefix_cache_pool import Names, adapters, publishers
from epp_plugins.producers.precise_prefix_cache_selector import parse_selector
from epp_plugins.producers.precise_prefix_cache_shared import Tee, shared_prefixes
from epp_plugins.producers.precise_prefix_cache_subscriptions import SubscriptionMetrics
from epp_plugins.producers.precise_prefix_cache_upkeep import Upkeep, sizes

INLINE_BLOCKS = 8192
"""Hashed without a pause: 0.5 ms."""

_STATE = "PrecisePrefixCacheState"
_MAX_DUMPED = 100
_QUIET = 60.0
_LONGEST_NAME = 256
_PATIENCE = 5.0  # seconds that endpoints may be without labels until it is said
_UNFOLLOWED_EVERY = 600.0


class _Prepared:
    """What the later hooks need: keys per block size and prompt, and the prediction for the chosen endpoint."""

    __slots__ = ("keys", "predicted", "target", "tokens")

    def __init__(self, keys: dict[int, list[Keys]], tokens: int) -> None:
        self.keys = keys
        self.tokens = tokens
        self.predicted = 0
        self.target = ""


class PrecisePrefixCacheProducer(Producer[PrecisePrefixCacheParams], EndpointExtractor[PrecisePrefixCacheParams]):
    """Publishes a `PrefixMatch` from what the servers hold."""

    type = "precise-prefix-cache-producer"
    stability = "beta"
    Params = PrecisePrefixCacheParams

    def __init__(self, params: PrecisePrefixCacheParams, context: PluginContext) -> None:
        super().__init__(params, context)
        tokens = params.tokens
        if tokens.block_size is not None:
            context.log.warning(
                "%s: parameter blockSize is deprecated, use blockSizeTokens: %d", self.name, tokens.block_size
            )
        if params.ignored:
            context.log.warning(
                "%s: %s: without effect here; prompts are tokenized by token-producer (vllm or local)",
                self.name,
                " and ".join(params.ignored),
            )
        self._block_size = params.block_size
        weights = {tier.name: tier.weight for tier in params.indexer_config.kv_cache_backend_configs}
        events = params.kv_events_config
        self.index = PreciseIndex(
            params.max_bytes,
            max_blocks=params.max_blocks,
            weights=weights,
            seed=tokens.hash_seed,
            copies=events.engine_type == "vllm",  # SGLang keeps one copy of each block
            log=context.log,
        )
        self._selected = parse_selector(events.pod_discovery_config.pod_label_selector)
        self.shared = shared_prefixes(params, context, self.name, self.type, self.index.hasher)
        self._wall_clock = context.settings.get("wall_clock", time.time)
        self.receiver = KVEventReceiver(
            self.index if self.shared is None else Tee(self.index, self.shared.index),
            clock=context.clock,
            wall_clock=self._wall_clock,
            settings=ReceiverSettings(topic_filter=events.topics),
            resolve=Names(context.table).endpoint,
        )
        self._ttl = seconds(params.speculative_ttl) or 0.0
        self._limit = seconds(params.warm_start_limit) or 0.0
        self._candidates = Candidates(context.table, self.index)
        self._adapters: frozenset[str] = frozenset()
        self._started_at: float | None = None
        self._warm = False
        self._warned_at = -_QUIET
        self._unfollowed_since: float | None = None
        self._unfollowed_said_at = -_UNFOLLOWED_EVERY
        self._state = DataKey(_STATE, self.name)
        self.check = SelfCheck(self.name, context.clock, context.log)
        details = params.indexer_config.kv_block_index_config.enable_metrics
        self._metrics: PreciseMetrics | None = None
        if context.metrics is not None:
            self._metrics = PreciseMetrics(context.metrics, self.name, self.type, details=details)
            SubscriptionMetrics(context.metrics, self.receiver, context.table)
        self._upkeep = Upkeep(
            self.index,
            params,
            table=context.table,
            clock=context.clock,
            log=context.log,
            name=self.name,
            report=self._report,
        )
        context.table.on_added(self._added)
        context.table.on_removed(self._removed)
        for row in context.table.rows.tolist():
            endpoint = context.table.endpoints[row]
            if endpoint is not None:
                self._added(row, endpoint)

    @property
    def consumes(self) -> Sequence[DataKey]:
        return (DataKey(TOKENIZED_PROMPT, "token-producer"),)

    @property
    def produces(self) -> Sequence[DataKey]:
        return (DataKey(PREFIX_CACHE_MATCH, self.name),)

    # Lifecycle

    async def start(self) -> None:
        """Load the snapshot, follow everybody, and keep the index in order."""
        await self._upkeep.load()
        if self.shared is not None:
            self.shared.index.start()
        self.receiver.start()
        endpoint = self.params.kv_events_config.zmq_endpoint
        if endpoint:
            self.receiver.bind(endpoint)
        self._started_at = self.context.clock()
        self._upkeep.start()

    async def stop(self) -> None:
        """Follow nobody any more, and write the snapshot."""
        await self._upkeep.stop()
        self.receiver.stop()
        if self.shared is not None:
            await self.shared.index.stop()

    def ready(self) -> bool:
        """When every known publisher has been replayed as far as it can be, or the limit is over."""
        if self._warm or self._started_at is None:
            return self._warm
        progress = self.receiver.progress()
        waited = self.context.clock() - self._started_at
        # While nobody is known there is nothing to wait for, but those who come first are worth it.
        self._warm = waited >= self._limit or (progress.ready and progress.total > 0)
        return self._warm or progress.ready

    def _report(self) -> None:
        """Once a second."""
        self._adapters = adapters(self.context.table)
        self._say_unfollowed()
        if self.shared is not None:
            self.shared.refresh(self.receiver.states())
        if self._metrics is not None:
            self._metrics.update(self.index, self.receiver.stats())

    # Endpoints

    def _added(self, _row: int, endpoint: Endpoint) -> None:
        found = publishers(endpoint, self.params.kv_events_config, self._selected)
        if found is not None:
            self.receiver.add(endpoint.host_port, found)

    def _removed(self, _row: int, endpoint: Endpoint) -> None:
        self.receiver.remove(endpoint.host_port)
        self.check.forget(endpoint.host_port)
        self.index.clear(endpoint.host_port)
        if self.shared is not None:
            self.shared.index.remove(endpoint.host_port)

    # A request's way

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> Awaitable[None] | None:
        """Inline up to 8192 blocks, unless the shared index is asked."""
        prompt = request.prompt
        if prompt is None or not prompt.data:
            return None
        if prompt.estimated:
            self._say_estimated()
            return None
        sizes = self._sizes()
        if min(prompt.tokens, MAX_TOKENS) // min(sizes) > INLINE_BLOCKS:
            return self._produce_in_slices(request, prompt, endpoints, sizes)
        keys = {size: self._keys(request, prompt, size) for size in sizes}
        return self._publish(request, prompt, endpoints, keys)

    async def _produce_in_slices(
        self, request: InferenceRequest, prompt: Prompt, endpoints: Endpoints, sizes: Sequence[int]
    ) -> None:
        keys = {}
        for size in sizes:
            # Hashing lets go of nothing that others write, so it may run beside the loop.
            keys[size] = await asyncio.to_thread(self._keys, request, prompt, size)
        waiting = self._publish(request, prompt, endpoints, keys)
        if waiting is not None:
            await waiting

    def _sizes(self) -> list[int]:
        """The engines' block sizes, as far as they are known."""
        own = self.index.block_sizes
        if self.shared is None or not self.shared.index.block_sizes:
            return own or [self._block_size]
        return [*own, *(size for size in self.shared.index.block_sizes if size not in own)]

    def _keys(self, request: InferenceRequest, prompt: Prompt, size: int) -> list[Keys]:
        model = request.target_model
        adapter = model if model in self.index.adapters or model in self._adapters else ""
        return chains(self.index.hasher, prompt, size, adapter=adapter, cache_salt=request.payload.cache_salt)

    def _publish(
        self, request: InferenceRequest, prompt: Prompt, endpoints: Endpoints, keys: dict[int, list[Keys]]
    ) -> Awaitable[None] | None:
        ours = self._block_size
        total = sum(len(data) // 4 // ours for data in prompt.data)
        if not total:
            return None
        metrics = None if self._metrics is None else self._metrics.index
        began = 0.0 if metrics is None else self.context.clock()
        blocks, weighted = self._candidates.match(keys, endpoints.rows, ours)
        if metrics is not None:
            metrics.looked_up(float(blocks.max(initial=0.0)), self.context.clock() - began)
        request.attributes[self._state] = _Prepared(keys, prompt.tokens)
        match = PrefixMatch(weighted, blocks, total, ours)
        publish_prefix_match(request, endpoints, self.name, match)
        return None if self.shared is None else self.shared.consult(request, endpoints, match, keys)

    def on_picked(self, request: InferenceRequest, result: SchedulingResult) -> None:
        """Note what is predicted, and believe for a while that the chosen endpoints will hold the prompt."""
        prepared: _Prepared | None = request.attributes.get(self._state)
        if prepared is None:
            return
        target = result.target
        match = prefix_match(request, target.candidates, self.name)
        row = target.rows[0]
        prefill = result.prefill
        if match is not None:
            position = int(np.argmax(target.candidates.rows == row))
            held = float(match.cached_blocks[position])
            if self._metrics is not None:
                self._metrics.hit(held, match.total_blocks, match.block_size_tokens)
            if len(prepared.keys) and sum(map(len, next(iter(prepared.keys.values())))) and prefill is None:
                size = self.index.block_size_of(target.picked[0].host_port) or self._block_size
                # A server computes at least the last token of a prompt itself.
                most = (prepared.tokens - 1) // size * size
                prepared.predicted = min(int(held) * match.block_size_tokens, most)
                prepared.target = target.picked[0].host_port
        if self.params.speculative_indexing and self._ttl:
            self._speculate(target.picked[0].host_port, prepared)
            if prefill is not None:
                self._speculate(prefill.picked[0].host_port, prepared)
        prepared.keys = {}

    def _speculate(self, endpoint: str, prepared: _Prepared) -> None:
        size = self.index.block_size_of(endpoint) or next(iter(prepared.keys), 0)
        for keys in prepared.keys.get(size, ()):
            self.index.speculate(endpoint, keys, self.context.clock() + self._ttl)

    def on_response_end(self, request: InferenceRequest, response: InferenceResponse) -> None:
        """Compare with what the server reports."""
        prepared: _Prepared | None = request.attributes.pop(self._state, None)
        if prepared is None or not prepared.target or response.served not in ("", prepared.target):
            return
        actual = self.check.reported(prepared.target, response.usage)
        if actual is None:
            return
        # What is predicted is whole blocks of ours, which may be larger than the server's.
        size = max(self.index.block_size_of(prepared.target) or 0, self._block_size)
        error = self.check.compare(
            Prediction(
                request.id[:_LONGEST_NAME],  # clients choose both
                self._wall_clock(),
                request.target_model[:_LONGEST_NAME],
                prepared.target,
                prepared.predicted,
                actual,
                prepared.tokens,
            ),
            size,
        )
        if self._metrics is not None:
            self._metrics.error(error)

    def _say_estimated(self) -> None:
        if self._metrics is not None:
            self._metrics.estimated()
        now = self.context.clock()
        if now - self._warned_at >= _QUIET:
            self._warned_at = now
            self.context.log.warning(
                "%s: prompts have estimated token ids, which no server's blocks can match: give token-producer a "
                "backend that makes real ones (said once a minute)",
                self.name,
            )

    def _say_unfollowed(self) -> None:
        """Endpoints are there, and none of them is meant to publish: the index would stay empty without a word."""
        clock = self.context.clock
        if not len(self.context.table.rows) or self.receiver.followed:
            self._unfollowed_since = None
            return
        if self._unfollowed_since is None:
            self._unfollowed_since = clock()
        elif clock() - self._unfollowed_since >= _PATIENCE and clock() - self._unfollowed_said_at >= _UNFOLLOWED_EVERY:
            self._unfollowed_said_at = clock()
            discovery = self.params.kv_events_config.pod_discovery_config
            self.context.log.warning(
                "%s: none of the endpoints is followed, so nothing is known of their caches: podDiscoveryConfig wants "
                "the labels %r and the namespace %r; give them to the servers, or set podLabelSelector (empty: all)",
                self.name, discovery.pod_label_selector, discovery.pod_namespace or "any",
            )  # fmt: skip

    # State

    def dump_state(self) -> dict[str, Any]:
        """The index, the publishers, and the latest predictions with what came of them."""
        index = self.index
        progress = self.receiver.progress()
        return {
            "blockSizeTokens": self._block_size,
            "engineBlockSizes": list(index.block_sizes),
            "index": sizes(index),
            "maxBytes": index.blocks.max_bytes,
            "tiers": dict(zip(index.tiers.names, index.tiers.weights, strict=True)),
            "speculative": len(index.speculation),
            "warmStart": {"publishers": progress.total, "synced": progress.synced, "ready": self.ready()},
            "publishers": [
                {
                    "endpoint": state.endpoint,
                    "rank": state.rank,
                    "address": state.address,
                    "status": state.status,
                    "error": state.error,
                    "lastSeq": state.last_seq,
                    "lost": state.lost,
                    "reconnections": state.reconnections,
                    "zmqErrors": dict(state.zmq_errors),
                    "badFrames": state.bad_frames,
                    "errors": dict(state.decode.errors),
                    "skipped": {" ".join(key): count for key, count in state.decode.skipped.items()},
                }
                for state in self.receiver.states()[:_MAX_DUMPED]
            ],
            "selfCheck": self.check.dump(),
            **({} if self.shared is None else {"shared": self.shared.dump()}),
        }
