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


def resolve(table: EndpointTable, name: str) -> str | None:
    """The endpoint that a topic speaks of: by `ip:port`, address, pod name or endpoint name."""
    if table.row_of(name) is not None:
        return name
    for row in table.rows.tolist():
        endpoint = table.endpoints[row]
        if endpoint is not None and name in (endpoint.address, endpoint.pod, endpoint.name, endpoint.key):
            address: str = endpoint.host_port
            return address
    return None


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
