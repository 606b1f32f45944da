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

Metrics: `prefix_indexer_size`, `_bytes`, `_hit_ratio`, `_hit_bytes`, `prefix_index_*` (with `enableMetrics`, and always
for what the bounds cost), `kv_event_*`, `prefix_prediction_error_tokens`.

Failure behaviour: a server that does not publish counts as holding nothing. Until the warm start is over, or its limit,
the plugin is not ready. A snapshot file that cannot be read or written is said in the log; the picker goes on without.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np

from epp.api import (
    LORA,
    MODELS,
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
    SchedulingResult,
    prefix_match,
    publish_prefix_match,
)
from epp.datalayer.durations import seconds
from epp.kvevents.receiver import KVEventReceiver
from epp.kvevents.settings import Publisher, ReceiverSettings
from epp.prefixcache.precise.hashing import Keys
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.prompts import prompt_keys
from epp.prefixcache.precise.snapshot import SnapshotError, load_snapshot, save_snapshot
from epp_plugins.producers.precise_prefix_cache_check import Prediction, SelfCheck
from epp_plugins.producers.precise_prefix_cache_metrics import PreciseMetrics
from epp_plugins.producers.precise_prefix_cache_params import PrecisePrefixCacheParams
from epp_plugins.producers.precise_prefix_cache_selector import parse_selector

MAX_TOKENS = 1 << 19
"""Tokens of a request that are looked at: beyond half a million a longer match decides nothing."""

INLINE_BLOCKS = 8192
"""Hashed without a pause: 0.5 ms."""

UPKEEP = 0.05
TIDY_SLICES = 8
REPORT = 1.0
_STATE = "PrecisePrefixCacheState"
_MAX_DUMPED = 100
_QUIET = 60.0


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
        self._block_size = params.block_size
        weights = {tier.name: tier.weight for tier in params.indexer_config.kv_cache_backend_configs}
        self.index = PreciseIndex(
            params.max_bytes, max_blocks=params.max_blocks, weights=weights, seed=tokens.hash_seed, log=context.log
        )
        events = params.kv_events_config
        discovery = events.pod_discovery_config
        self._selected = parse_selector(discovery.pod_label_selector)
        self.receiver = KVEventReceiver(
            self.index,
            clock=context.clock,
            wall_clock=context.settings.get("wall_clock", time.time),
            settings=ReceiverSettings(topic_filter=events.topics),
            resolve=self._resolve,
        )
        self._ttl = seconds(params.speculative_ttl) or 0.0
        self._limit = seconds(params.warm_start_limit) or 0.0
        self._trust = seconds(params.snapshot_trust) or 0.0
        self._lanes = np.zeros(0, dtype=np.intp)
        self._lanes_version = (-1, -1)
        self._adapters: frozenset[str] = frozenset()
        self._started_at: float | None = None
        self._warm = False
        self._task: asyncio.Task[None] | None = None
        self._warned_at = -_QUIET
        self._state = DataKey(_STATE, self.name)
        self.check = SelfCheck(self.name, context.clock, context.log)
        index_config = params.indexer_config.kv_block_index_config
        self._log_interval = seconds(index_config.metrics_logging_interval)
        self._metrics = (
            PreciseMetrics(context.metrics, self.name, self.type, details=index_config.enable_metrics)
            if context.metrics is not None
            else None
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
        params = self.params
        if params.snapshot_file:
            await self._load()
        self.receiver.start()
        if params.kv_events_config.zmq_endpoint:
            self.receiver.bind(params.kv_events_config.zmq_endpoint)
        self._started_at = self.context.clock()
        self._task = asyncio.create_task(self._upkeep(self._started_at), name=f"{self.name} upkeep")

    async def stop(self) -> None:
        """Follow nobody any more, and write the snapshot."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self._save()
        self.receiver.stop()

    def ready(self) -> bool:
        """When every known publisher has been replayed as far as it can be, or the limit is over."""
        if not self._warm and self._started_at is not None:
            waited = self.context.clock() - self._started_at
            self._warm = waited >= self._limit or self.receiver.progress().ready
        return self._warm

    async def _upkeep(self, began: float) -> None:
        due = {"report": began, "log": began, "save": began}
        while True:
            await asyncio.sleep(UPKEEP)
            try:
                await self._turn(began, due)
            except Exception:  # a defect in one turn must not end them all
                self.context.log.exception("%s: upkeep of the index failed", self.name)
                await asyncio.sleep(REPORT)

    async def _turn(self, began: float, due: dict[str, float]) -> None:
        index, now = self.index, self.context.clock()
        index.expire(now)
        if index.restored and now - began >= self._trust:
            index.drop_restored()
            for name in [name for name in index.lanes.endpoints() if self.context.table.row_of(name) is None]:
                index.clear(name)  # it was gone before this picker started
        for _ in range(TIDY_SLICES):
            if not index.tidy():
                break
            await asyncio.sleep(0)
        if now - due["report"] >= REPORT:
            due["report"] = now
            self._refresh_adapters()
            if self._metrics is not None:
                self._metrics.update(index, self.receiver.stats())
        if self._log_interval and now - due["log"] >= self._log_interval:
            due["log"] = now
            self.context.log.info("%s: %s", self.name, self._sizes())
        interval = seconds(self.params.snapshot_interval)
        if interval and now - due["save"] >= interval:
            due["save"] = now
            await self._save()

    async def _load(self) -> None:
        try:
            count = await load_snapshot(self.index, self.params.snapshot_file)
        except FileNotFoundError:
            return
        except (OSError, SnapshotError) as error:
            self.context.log.warning("%s: snapshot %s is not used: %s", self.name, self.params.snapshot_file, error)
        else:
            self.context.log.info("%s: %d blocks from %s", self.name, count, self.params.snapshot_file)

    async def _save(self) -> None:
        if not self.params.snapshot_file:
            return
        try:
            await save_snapshot(self.index, self.params.snapshot_file)
        except OSError as error:
            self.context.log.warning("%s: cannot write the snapshot: %s", self.name, error)

    # Endpoints

    def _added(self, _row: int, endpoint: Endpoint) -> None:
        events = self.params.kv_events_config
        discovery = events.pod_discovery_config
        if discovery.pod_namespace and endpoint.namespace != discovery.pod_namespace:
            return
        if not self._selected(endpoint.labels):
            return
        publishers = []
        if events.connects:
            host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
            replay = discovery.replay_socket_port
            publishers.append(
                Publisher(
                    f"tcp://{host}:{discovery.socket_port + endpoint.rank}",
                    f"tcp://{host}:{replay + endpoint.rank}" if replay else None,
                    endpoint.rank,
                )
            )
        self.receiver.add(endpoint.host_port, publishers)

    def _removed(self, _row: int, endpoint: Endpoint) -> None:
        self.receiver.remove(endpoint.host_port)
        self.check.forget(endpoint.host_port)
        self.index.clear(endpoint.host_port)

    def _resolve(self, name: str) -> str | None:
        """The endpoint that a topic speaks of: by `ip:port`, address, pod name or endpoint name."""
        table = self.context.table
        if table.row_of(name) is not None:
            return name
        for row in table.rows.tolist():
            endpoint = table.endpoints[row]
            if endpoint is not None and name in (endpoint.address, endpoint.pod, endpoint.name, endpoint.key):
                address: str = endpoint.host_port
                return address
        return None

    def _refresh_adapters(self) -> None:
        """Names of LoRA adapters as the servers' metrics and model lists tell them."""
        names: set[str] = set()
        for row in self.context.table.rows.tolist():
            attributes = self.context.table.attributes[row]
            lora = attributes.get(LORA)
            if lora is not None:
                names |= lora.active | lora.waiting
            names.update(model.id for model in attributes.get(MODELS) or () if model.parent)
        self._adapters = frozenset(names)

    # A request's way

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> Awaitable[None] | None:
        """Inline up to 8192 blocks."""
        prompt = request.prompt
        if prompt is None or not prompt.data:
            return None
        if prompt.estimated:
            self._say_estimated()
            return None
        sizes = self.index.block_sizes or [self._block_size]
        if min(prompt.tokens, MAX_TOKENS) // min(sizes) > INLINE_BLOCKS:
            return self._produce_in_slices(request, endpoints, sizes)
        prepared = _Prepared({size: self._keys(request, size) for size in sizes}, prompt.tokens)
        self._publish(request, endpoints, prepared)
        return None

    async def _produce_in_slices(self, request: InferenceRequest, endpoints: Endpoints, sizes: Sequence[int]) -> None:
        prompt = request.prompt
        if prompt is None:
            return
        prepared = _Prepared({}, prompt.tokens)
        for size in sizes:
            # Hashing lets go of nothing that others write, so it may run beside the loop.
            prepared.keys[size] = await asyncio.to_thread(self._keys, request, size)
        self._publish(request, endpoints, prepared)

    def _keys(self, request: InferenceRequest, size: int) -> list[Keys]:
        prompt = request.prompt
        if prompt is None:
            return []
        model = request.target_model
        adapter = model if model in self.index.adapters or model in self._adapters else ""
        left = MAX_TOKENS // size
        chains = []
        for number, data in enumerate(prompt.data):
            keys = prompt_keys(
                self.index.hasher,
                data,
                size,
                adapter=adapter,
                cache_salt=request.payload.cache_salt,
                features=[feature for feature in prompt.features if feature.prompt == number],
                most=left,
            )
            left -= len(keys)
            chains.append(keys)
        return chains

    def _publish(self, request: InferenceRequest, endpoints: Endpoints, prepared: _Prepared) -> None:
        ours = self._block_size
        prompt = request.prompt
        if prompt is None:
            return
        total = sum(len(data) // 4 // ours for data in prompt.data)
        if not total:
            return
        lanes = self._lanes_of(endpoints)
        blocks, weighted = np.zeros(len(endpoints)), np.zeros(len(endpoints))
        for number in range(len(prompt.data)):
            best, worth = np.zeros(len(endpoints)), np.zeros(len(endpoints))
            for size, chains in prepared.keys.items():
                match = self.index.match(chains[number])
                # Lane -1 is the last of the padding: it belongs to nobody.
                held = np.append(match.blocks, 0.0)[lanes]
                value = np.append(match.weighted, 0.0)[lanes]
                if size != ours:
                    whole = held * size // ours
                    value = np.divide(value * whole, held, out=np.zeros(len(held)), where=held > 0)
                    held = whole
                better = held > best
                best = np.where(better, held, best)
                worth = np.where(better, value, worth)
            blocks += best
            weighted += worth
        request.attributes[self._state] = prepared
        publish_prefix_match(request, endpoints, self.name, PrefixMatch(weighted, blocks, total, ours))

    def _lanes_of(self, endpoints: Endpoints) -> np.ndarray[Any, np.dtype[np.intp]]:
        """The lane of each candidate, -1 for those that never told anything."""
        table, lanes = self.context.table, self.index.lanes
        version = (table.version, lanes.version)
        if version != self._lanes_version:
            self._lanes = np.full(len(table.endpoints), -1, dtype=np.intp)
            for name, lane in lanes.endpoints().items():
                row = table.row_of(name)
                if row is not None:
                    self._lanes[row] = lane
            self._lanes_version = version
        return self._lanes[endpoints.rows]

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
        size = self.index.block_size_of(prepared.target) or self._block_size
        error = self.check.compare(
            Prediction(request.id, prepared.target, prepared.predicted, actual, prepared.tokens), size
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

    # State

    def _sizes(self) -> dict[str, Any]:
        index = self.index
        return {
            "blocks": index.blocks.count,
            "bytes": index.blocks.size_bytes,
            "bytesPerBlock": round(index.blocks.bytes_per_block, 1),
            "evicted": index.blocks.evicted,
            "endpoints": len(index.lanes),
            **{name: getattr(index.counters, name) for name in index.counters.__slots__},
        }

    def dump_state(self) -> dict[str, Any]:
        """The index, the publishers, and the latest predictions with what came of them."""
        index = self.index
        progress = self.receiver.progress()
        return {
            "blockSizeTokens": self._block_size,
            "engineBlockSizes": list(index.block_sizes),
            "index": self._sizes(),
            "maxBytes": index.blocks.max_bytes,
            "tiers": dict(zip(index.tiers.names, index.tiers.weights, strict=True)),
            "speculative": len(index.speculation),
            "warmStart": {"publishers": progress.total, "synced": progress.synced, "ready": self._warm},
            "publishers": [
                {
                    "endpoint": state.endpoint,
                    "rank": state.rank,
                    "address": state.address,
                    "status": state.status,
                    "error": state.error,
                    "lastSeq": state.last_seq,
                    "lost": state.lost,
                }
                for state in self.receiver.states()[:_MAX_DUMPED]
            ],
            "selfCheck": self.check.dump(),
        }
