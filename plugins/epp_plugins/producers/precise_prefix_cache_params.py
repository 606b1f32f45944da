"""Parameters of `precise-prefix-cache-producer`: names and defaults of llm-d-router, and a few of ours."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, field

from epp.api import Params
from epp.datalayer.durations import seconds
from epp_plugins.producers.precise_prefix_cache_shared_params import RedisConfig

_Natural = Annotated[int, Meta(ge=0)]
_Port = Annotated[int, Meta(ge=0, le=65535)]
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kKMGT]i?)?B?)\s*")
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
DEFAULT_BYTES = 2 << 30
DEFAULT_BLOCKS = 100_000_000


def size_in_bytes(text: str | int) -> int:
    """`2GiB`, `2Gi`, `500MB`, or a number of bytes."""
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise ValueError(f'{text!r} is no size: write "2GiB", "500MB" or a number of bytes')
    unit = (match[2] or "").replace("K", "k")
    return int(float(match[1]) * _UNITS.get(unit, 1))


class TokenProcessorConfig(Params, frozen=True):
    """`blockSizeTokens`: in which blocks matches are counted. `hashSeed` is mixed into every key.

    `hashAlgorithm` (`cbor-fnv`, `xxh64`) has no effect: keys are ours, in memory and in a shared index, and one faster
    function serves both.
    """

    block_size_tokens: Annotated[int, Meta(ge=1, le=65536, description="tokens per reported block")] = 16
    block_size: Annotated[int, Meta(ge=1, le=65536, description="deprecated name of blockSizeTokens")] | None = None
    hash_seed: Annotated[str, Meta(description="mixed into every key")] = ""
    hash_algorithm: Annotated[Literal["", "cbor-fnv", "xxh64"], Meta(description="no effect")] = ""


class InMemoryConfig(Params, frozen=True):
    """`size` bounds the number of blocks. `podCacheSize` has no effect: every holder of a block is known."""

    size: Annotated[int, Meta(ge=1, description="blocks")] = DEFAULT_BLOCKS
    pod_cache_size: Annotated[_Natural, Meta(description="no effect")] = 10


class CostAwareMemoryConfig(Params, frozen=True):
    """`size` bounds the memory."""

    size: Annotated[str | int, Meta(description="bytes, such as 2GiB")] = "2GiB"

    def __post_init__(self) -> None:
        if size_in_bytes(self.size) < 1 << 20:
            raise ValueError("size: an index needs at least 1MiB")


class KVBlockIndexConfig(Params, frozen=True):
    """Bounds of the index, and whether it tells about itself.

    `redisConfig`, or `valkeyConfig`, which is the same, adds an index that pickers share to the local one.
    """

    in_memory_config: InMemoryConfig | None = None
    cost_aware_memory_config: CostAwareMemoryConfig | None = None
    redis_config: RedisConfig | None = None
    valkey_config: RedisConfig | None = None
    enable_metrics: Annotated[bool, Meta(description="metrics of what happens in the index")] = False
    metrics_logging_interval: Annotated[str | float, Meta(description="log them so often; 0: never")] = 0

    def __post_init__(self) -> None:
        seconds(self.metrics_logging_interval)
        if self.in_memory_config is not None and self.cost_aware_memory_config is not None:
            raise ValueError("inMemoryConfig and costAwareMemoryConfig exclude each other: keep one")
        if self.redis_config is not None and self.valkey_config is not None:
            raise ValueError("redisConfig and valkeyConfig exclude each other: keep one")

    @property
    def shared(self) -> RedisConfig | None:
        """The shared index, if there is one."""
        return self.redis_config or self.valkey_config


class KVCacheBackendConfig(Params, frozen=True):
    """What a block in the tier `name` is worth, compared with one that need not be loaded or computed."""

    name: Annotated[str, Meta(min_length=1, description="tier, as the engine calls it")]
    weight: Annotated[float, Meta(ge=0, le=1, description="worth of a block there")] = 1.0


class IndexerConfig(Params, frozen=True):
    """The index. `tokenizersPoolConfig` and `prefixStoreConfig` of old configurations have no effect."""

    kv_block_index_config: KVBlockIndexConfig = KVBlockIndexConfig()
    kv_cache_backend_configs: tuple[KVCacheBackendConfig, ...] = (
        KVCacheBackendConfig(name="gpu", weight=1.0),
        KVCacheBackendConfig(name="cpu", weight=0.8),
    )
    tokenizers_pool_config: dict[str, Any] | None = None
    prefix_store_config: dict[str, Any] | None = None
    token_processor_config: TokenProcessorConfig | None = None


class PodDiscoveryConfig(Params, frozen=True):
    """Which endpoints publish, and where: rank r of a pod adds r to both ports. `replaySocketPort` 0: no replay."""

    pod_label_selector: Annotated[str, Meta(description="key=value, key!=value, key, !key; comma-separated")] = (
        "llm-d.ai/inference-serving=true"
    )
    pod_namespace: Annotated[str, Meta(description="empty: any")] = ""
    socket_port: Annotated[_Port, Meta(description="where rank 0 publishes")] = 5557
    replay_socket_port: Annotated[_Port, Meta(description="where rank 0 replays; 0: nowhere")] = 0


class KVEventsConfig(Params, frozen=True):
    """Where events come from.

    `zmqEndpoint` set: publishers connect to this socket of ours, and endpoints are not connected to unless
    `discoverPods` is set to true beside it. `topicFilter` unset: `kv@`, for SGLang everything. `concurrency` has no
    effect: one event loop reads all.
    """

    zmq_endpoint: Annotated[str, Meta(description="address to bind, such as tcp://*:5557")] = ""
    topic_filter: Annotated[str, Meta(description="prefix of the topics")] | None = None
    concurrency: Annotated[_Natural, Meta(description="no effect")] = 4
    engine_type: Literal["vllm", "sglang"] = "vllm"
    discover_pods: bool | None = None
    pod_discovery_config: PodDiscoveryConfig = PodDiscoveryConfig()

    @property
    def connects(self) -> bool:
        """Whether endpoints are connected to."""
        return not self.zmq_endpoint if self.discover_pods is None else self.discover_pods

    @property
    def topics(self) -> str:
        """The prefix to subscribe to."""
        if self.topic_filter is not None:
            return self.topic_filter
        return "kv@" if self.engine_type == "vllm" else ""


class PrecisePrefixCacheParams(Params, frozen=True):
    """Names and defaults of llm-d-router; `maxIndexBytes` and what begins with `warmStart` or `snapshot` are ours."""

    token_processor_config: TokenProcessorConfig = TokenProcessorConfig()
    indexer_config: IndexerConfig = IndexerConfig()
    kv_events_config: KVEventsConfig = field(default=KVEventsConfig(), name="kvEventsConfig")
    speculative_indexing: Annotated[bool, Meta(description="count a prompt as cached where it was just sent")] = False
    speculative_ttl: Annotated[str | float, Meta(description="for how long")] = field(
        default="2s", name="speculativeTTL"
    )
    max_index_bytes: Annotated[int, Meta(ge=1 << 20, description="memory of the index")] = DEFAULT_BYTES
    warm_start_limit: Annotated[str | float, Meta(description="longest that readiness waits for replays")] = "30s"
    snapshot_file: Annotated[str, Meta(description="file that keeps the index over a restart; empty: none")] = ""
    snapshot_interval: Annotated[str | float, Meta(description="between two writings; 0: only on stop")] = "5m"
    snapshot_trust: Annotated[str | float, Meta(description="how long unconfirmed blocks are believed")] = "60s"

    def __post_init__(self) -> None:
        for value in (self.speculative_ttl, self.warm_start_limit, self.snapshot_interval, self.snapshot_trust):
            seconds(value)
        events = self.kv_events_config
        if not events.zmq_endpoint and not events.connects and not self.indexer_config.kv_block_index_config.shared:
            raise ValueError(
                "discoverPods is false and zmqEndpoint is empty: no events could ever come; set one, or redisConfig"
            )

    @property
    def tokens(self) -> TokenProcessorConfig:
        """Old configurations have it inside `indexerConfig`."""
        return self.indexer_config.token_processor_config or self.token_processor_config

    @property
    def block_size(self) -> int:
        """Tokens per reported block."""
        return self.tokens.block_size or self.tokens.block_size_tokens

    @property
    def ignored(self) -> list[str]:
        """What old configurations have to tokenize with, and is not used."""
        given = {
            "tokenizersPoolConfig": self.indexer_config.tokenizers_pool_config,
            "prefixStoreConfig": self.indexer_config.prefix_store_config,
        }
        return [f"indexerConfig.{name}" for name, value in given.items() if value is not None]

    @property
    def max_bytes(self) -> int:
        """Memory of the index."""
        cost_aware = self.indexer_config.kv_block_index_config.cost_aware_memory_config
        return self.max_index_bytes if cost_aware is None else size_in_bytes(cost_aware.size)

    @property
    def max_blocks(self) -> int:
        """Blocks of the index."""
        in_memory = self.indexer_config.kv_block_index_config.in_memory_config
        return DEFAULT_BLOCKS if in_memory is None else in_memory.size
