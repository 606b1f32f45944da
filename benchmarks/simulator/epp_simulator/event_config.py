"""`--kv-events-config`: the keys of vLLM, and its rules for which socket binds and which port a rank gets."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

_PORT = re.compile(r"(.*):(\d+)")


@dataclass(frozen=True, slots=True)
class KVEventsConfig:
    """Defaults are vLLM's. `topic`: `{host}`, `{port}` and `{model}` are replaced: many servers share the option.

    `buffer_steps`: batches kept for replay. `hwm`: messages that wait for a slow subscriber. `max_queue_size` is
    accepted and told, but has no meaning: there is no thread to queue for.
    """

    enable_kv_cache_events: bool = False
    publisher: str = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""

    @classmethod
    def parse(cls, text: str) -> KVEventsConfig:
        """From JSON; ValueError for unknown keys or bad values."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a JSON object is expected")
        known = [option.name for option in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown key {name!r}; known are {', '.join(known)}")
        for name in ("endpoint", "replay_endpoint", "publisher", "topic"):
            if not isinstance(values.get(name) or "", str):
                raise ValueError(f"{name} {values[name]!r}: use a string")
        config = cls(**values)
        if config.publisher not in ("zmq", "null"):
            raise ValueError(f"publisher {config.publisher!r}: use zmq or null")
        for name in ("buffer_steps", "hwm"):
            if not isinstance(values.get(name, 1), int) or values.get(name, 1) < 0:
                raise ValueError(f"{name} {values[name]!r}: use a number of messages, 0 or more")
        for address in filter(None, (config.endpoint, config.replay_endpoint)):
            offset(address, 0)
        return config

    @property
    def publishes(self) -> bool:
        """There is something to open a socket for."""
        return self.enable_kv_cache_events and self.publisher == "zmq"

    def for_rank(self, rank: int, **names: object) -> KVEventsConfig:
        """Ports are `rank` higher, the names in the topic are filled in."""
        topic = self.topic
        for name, value in names.items():
            topic = topic.replace(f"{{{name}}}", str(value))
        replay = offset(self.replay_endpoint, rank) if self.replay_endpoint else None
        return replace(self, endpoint=offset(self.endpoint, rank), replay_endpoint=replay, topic=topic)

    def told(self) -> dict[str, Any]:
        """As `/kv_event_sources` shows it."""
        return asdict(self)


def binds(endpoint: str) -> bool:
    """vLLM's rule: a wildcard or a local transport is bound, any other address is connected to."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def offset(endpoint: str, rank: int) -> str:
    """The address of a rank: its port is `rank` higher; local transports get a suffix. Port 0 stays 0: any port."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return f"{endpoint}_dp{rank}" if rank else endpoint
    match = _PORT.fullmatch(endpoint)
    if match is None or not endpoint.startswith("tcp://"):
        raise ValueError(f"endpoint {endpoint!r}: use tcp://*:PORT, tcp://HOST:PORT, ipc://PATH or inproc://NAME")
    port = int(match[2])
    return f"{match[1]}:{port + rank if port else 0}"


def advertised(bound: str, host: str) -> str:
    """A bound address as others reach it."""
    return re.sub(r"^tcp://(\*|0\.0\.0\.0|\[::\])(?=:)", f"tcp://{host}", bound)
