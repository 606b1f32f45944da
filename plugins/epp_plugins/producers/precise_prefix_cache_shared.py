"""The shared index of the precise producer: who writes into it, and which candidates it is asked about.

The local index is the truth about endpoints whose events were all seen. About the others (followed from the middle of
their life without a complete replay, with lost messages, or not followed at all) the shared index may know more: it is
asked about prompts that such a candidate is not known to hold, and the longer match counts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np

from epp.api import ConfigError, Endpoints, InferenceRequest, PluginContext, PrefixMatch, publish_prefix_match
from epp.kvevents.events import BlockRemoved, EventSink, KVEvent
from epp.kvevents.settings import PublisherState
from epp.prefixcache.precise.hashing import BlockHasher
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.remaining import really_removed
from epp.prefixcache.shared.index import CLIENT_TIMEOUT, CONNECTIONS, Found, SharedIndex
from epp.prefixcache.shared.matching import Reach
from epp.prefixcache.shared.server import Server, server_url
from epp_plugins.producers.precise_prefix_cache_matching import Chains, longest
from epp_plugins.producers.precise_prefix_cache_params import PrecisePrefixCacheParams
from epp_plugins.producers.precise_prefix_cache_shared_metrics import WRITES, SharedMetrics


class Tee:
    """An `EventSink` that hands everything to two: first the local index, then the shared one.

    The shared one does not know how many copies of a block its server has. So it is not told of a removal after which
    the local index, which counts them, knows that one is left.
    """

    def __init__(self, local: PreciseIndex, shared: EventSink) -> None:
        self._local, self._shared = local, shared

    def apply_many(self, batches: Sequence[tuple[str, Sequence[KVEvent]]]) -> None:
        self._local.apply_many(batches)
        if self._local.counters.copies:
            batches = [(endpoint, [self._left(endpoint, event) for event in events]) for endpoint, events in batches]
        self._shared.apply_many(batches)

    def clear(self, endpoint: str) -> None:
        self._local.clear(endpoint)
        self._shared.clear(endpoint)

    def _left(self, endpoint: str, event: KVEvent) -> KVEvent:
        return really_removed(self._local, endpoint, event) if isinstance(event, BlockRemoved) else event


class SharedPrefixes:
    """The shared index of the producer `name`."""

    def __init__(
        self, index: SharedIndex, context: PluginContext, name: str, shown: str, metrics: SharedMetrics | None
    ) -> None:
        self.index = index
        self._context = context
        self._name = name
        self._shown = shown
        self._metrics = metrics
        self._whole: frozenset[str] = frozenset()

    def refresh(self, states: Sequence[PublisherState]) -> None:
        """Once a second: which endpoints are known from their first event on, and metrics."""
        parts: dict[str, list[PublisherState]] = {}
        for state in states:
            parts.setdefault(state.endpoint, []).append(state)
        self._whole = frozenset(name for name, own in parts.items() if all(map(_seen_from_the_start, own)))
        if self._metrics is not None:
            self._metrics.update(self.index)

    def consult(
        self, request: InferenceRequest, endpoints: Endpoints, match: PrefixMatch, keys: Chains
    ) -> Awaitable[None] | None:
        """Improve the match that was just published; None when there is nothing to ask."""
        table = self._context.table.endpoints
        names = []
        for row, held in zip(endpoints.rows.tolist(), match.cached_blocks.tolist(), strict=True):
            endpoint = table[row]
            name = "" if endpoint is None or held >= match.total_blocks else endpoint.host_port
            names.append("" if name in self._whole else name)
        return self._improve(request, endpoints, match, keys, names) if any(names) else None

    async def _improve(
        self,
        request: InferenceRequest,
        endpoints: Endpoints,
        match: PrefixMatch,
        keys: Chains,
        names: Sequence[str],
    ) -> None:
        found = await self.index.lookup(keys)
        if found is None:
            return
        blocks, weighted = np.zeros(len(names)), np.zeros(len(names))
        for prompt in zip(*found.values(), strict=True):
            matches = [(size, _lengths(own, names)) for size, own in zip(found, prompt, strict=True)]
            best, worth = longest(matches, match.block_size_tokens, len(names))
            blocks += best
            weighted += worth
        better = blocks > match.cached_blocks
        if better.any():
            merged = PrefixMatch(
                np.where(better, weighted, match.blocks),
                np.where(better, blocks, match.cached_blocks),
                match.total_blocks,
                match.block_size_tokens,
            )
            publish_prefix_match(request, endpoints, self._name, merged)

    def dump(self) -> dict[str, Any]:
        """For `/debug/plugins/state`."""
        index = self.index
        return {
            "address": self._shown,
            "up": index.up,
            "blockSizes": list(index.block_sizes),
            "pendingEvents": len(index.pending),
            "pendingBytes": index.pending.bytes,
            "dropped": index.pending.dropped,
            "wholeEndpoints": len(self._whole),
            **{name: getattr(index.stats, name) for name in (*WRITES, "cleared", "errors")},
            "lookups": dict(index.stats.lookups),
        }


def shared_prefixes(
    params: PrecisePrefixCacheParams, context: PluginContext, name: str, kind: str, hasher: BlockHasher
) -> SharedPrefixes | None:
    """As the parameters say; None without `redisConfig`. ConfigError: no redis-py, or no file with the password."""
    config = params.indexer_config.kv_block_index_config.shared
    if config is None:
        return None
    metrics = None if context.metrics is None else SharedMetrics(context.metrics, name, kind)
    weights = {tier.name: tier.weight for tier in params.indexer_config.kv_cache_backend_configs}
    try:
        server = Server(
            server_url(config.address),
            connections=CONNECTIONS + 2,
            timeout=CLIENT_TIMEOUT,
            user=config.username,
            password=config.secret(),
            db=config.db,
        )
    except (RuntimeError, OSError) as error:
        raise ConfigError(f"{name}: redisConfig: {error}") from error
    index = SharedIndex(
        server,
        hasher,
        config.settings(weights),
        clock=context.clock,
        rng=context.rng,
        log=context.log,
        name=name,
        observe=None if metrics is None else metrics.took,
    )
    return SharedPrefixes(index, context, name, server.shown, metrics)


def _lengths(found: Found, names: Sequence[str]) -> tuple[Any, Any]:
    none = Reach()
    reached = [found.get(name, none) if name else none for name in names]
    return np.array([float(each.blocks) for each in reached]), np.array([each.weighted for each in reached])


def _seen_from_the_start(state: PublisherState) -> bool:
    """As many messages were taken as the last one's number says, and none is known to be lost."""
    if state.last_seq is None or state.lost or state.status != "live":
        return False
    return bool(state.restarts) or state.messages + state.replayed - state.duplicates > state.last_seq
