"""What the pool tells the precise producer: where each endpoint publishes, whom a topic means, which adapters exist."""

from __future__ import annotations

from epp.api import LORA, MODELS, Endpoint, EndpointTable
from epp.kvevents.settings import Publisher
from epp_plugins.producers.precise_prefix_cache_params import KVEventsConfig
from epp_plugins.producers.precise_prefix_cache_selector import Selector


def publishers(endpoint: Endpoint, events: KVEventsConfig, selected: Selector) -> list[Publisher] | None:
    """The publishers to connect to; none when they connect to us; None: the endpoint is not followed at all."""
    discovery = events.pod_discovery_config
    if discovery.pod_namespace and endpoint.namespace != discovery.pod_namespace:
        return None
    if not selected(endpoint.labels):
        return None
    if not events.connects:
        return []
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    replay = discovery.replay_socket_port
    return [
        Publisher(
            f"tcp://{host}:{discovery.socket_port + endpoint.rank}",
            f"tcp://{host}:{replay + endpoint.rank}" if replay else None,
            endpoint.rank,
        )
    ]


class Names:
    """From what a topic says to the endpoint; looked up again when the pool has changed."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._version = -1
        self._ranks: dict[str, dict[int, str]] = {}  # by name: the endpoints behind it, by data-parallel rank

    def endpoint(self, name: str, rank: int) -> str | None:
        """The `ip:port` behind a name: `ip:port`, address, pod name or endpoint name. None: nobody has it.

        Ranks of one server have one topic but may be endpoints of their own: then it is the one with this rank.
        """
        if self._version != self._table.version:
            self._refresh()
        row = self._table.row_of(name)
        own = None if row is None else self._table.endpoints[row]
        if own is not None:
            if own.rank == rank:
                return name
            return self._ranks[own.address].get(rank, name)
        ranks = self._ranks.get(name)
        return None if ranks is None else ranks.get(rank) or next(iter(ranks.values()))

    def _refresh(self) -> None:
        self._version = self._table.version
        self._ranks = {}
        for row in self._table.rows.tolist():
            endpoint = self._table.endpoints[row]
            if endpoint is not None:
                for name in {endpoint.address, endpoint.pod, endpoint.name, endpoint.key} - {""}:
                    self._ranks.setdefault(name, {}).setdefault(endpoint.rank, endpoint.host_port)


def adapters(table: EndpointTable) -> frozenset[str]:
    """Names of LoRA adapters as the servers' metrics and model lists tell them."""
    names: set[str] = set()
    for row in table.rows.tolist():
        attributes = table.attributes[row]
        lora = attributes.get(LORA)
        if lora is not None:
            names |= lora.active | lora.waiting
        names.update(model.id for model in attributes.get(MODELS) or () if model.parent)
    return frozenset(names)
