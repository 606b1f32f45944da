"""Names of the data that producers hand to filters and scorers."""

from __future__ import annotations

from typing import NamedTuple


class DataKey(NamedTuple):
    """`<type>/<producer>`: what it is, and the name of the plugin that produced it.

    Two producers of one type (an approximate and a precise prefix cache) coexist; a consumer names the one it reads.
    """

    type: str
    producer: str

    def __str__(self) -> str:
        return f"{self.type}/{self.producer}"


ANY_PRODUCER = ""
"""As the producer of a consumed key: whichever there is. Required of several is an error at start."""

# The types that ship, and the plugin that is created when nobody configured a producer for a required key.
TOKENIZED_PROMPT = "TokenizedPrompt"
PREFIX_CACHE_MATCH = "PrefixCacheMatchInfoDataKey"
INFLIGHT_LOAD = "InFlightLoadDataKey"
UNCACHED_TOKENS = "UncachedRequestTokensDataKey"
SESSION_ID = "SessionIDDataKey"
AGENT_IDENTITY = "agent-identity"
TOPOLOGY = "Topology"

PEER_ENDPOINT = DataKey("peer-endpoint", "disagg-profile-handler")
"""Request attribute with the `Endpoint` that an earlier profile of this request chose. There is one profile handler, so
its name is not asked for."""

DEFAULT_PRODUCERS: dict[str, str] = {
    TOKENIZED_PROMPT: "token-producer",
    PREFIX_CACHE_MATCH: "approx-prefix-cache-producer",
    INFLIGHT_LOAD: "inflight-load-producer",
    UNCACHED_TOKENS: "inflight-load-producer",
    SESSION_ID: "session-id-producer",
}
