"""`redisConfig` of the precise producer: what is not named so in llm-d-router is ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from epp.api import Params
from epp.datalayer.durations import seconds
from epp.prefixcache.shared.server import DEFAULT_ADDRESS, server_url
from epp.prefixcache.shared.settings import SharedSettings

_ADDRESS = "host:port, or redis://, rediss://, valkey://, valkeys://, unix://"


class RedisConfig(Params, frozen=True):
    """A Redis or Valkey server in which pickers share what they know of the servers' caches.

    `username`, `password` and `db` go before those in the address; `passwordFile` keeps the password out of the
    configuration. `backendType` and `enableRDMA` have no effect: both servers speak the same. With `readOnly` this
    picker only looks up what others write.
    """

    address: Annotated[str, Meta(description=_ADDRESS)] = DEFAULT_ADDRESS
    username: Annotated[str, Meta(description="empty: as in the address")] = ""
    password: Annotated[str, Meta(description="empty: as in the address")] = ""
    password_file: Annotated[str, Meta(description="file with the password, read at start")] = ""
    db: Annotated[int, Meta(ge=0, description="number of the database; 0: as in the address")] = 0
    backend_type: Annotated[Literal["", "redis", "valkey"], Meta(description="no effect")] = ""
    enable_rdma: Annotated[bool, Meta(description="no effect")] = field(default=False, name="enableRDMA")
    lookup_budget: Annotated[str | float, Meta(description="longest that a request waits for the server")] = "5ms"
    lookup_blocks: Annotated[int, Meta(ge=1, le=32768, description="blocks of a request that are looked up")] = 1024
    read_only: Annotated[bool, Meta(description="look up, but write nothing")] = False
    ttl: Annotated[str | float, Meta(description="what is written is forgotten after this; 0: never")] = "24h"
    max_pending_bytes: Annotated[int, Meta(ge=1 << 16, description="memory of events that wait to be written")] = (
        64 << 20
    )

    def __post_init__(self) -> None:
        server_url(self.address)
        if seconds(self.lookup_budget) is None:
            raise ValueError("lookupBudget: must be more than 0; without redisConfig nothing is looked up")
        if 0 < (seconds(self.ttl) or 0.0) < 1:
            raise ValueError("ttl: at least 1s, or 0 for never")
        if self.password and self.password_file:
            raise ValueError("password and passwordFile exclude each other: keep one")

    def secret(self) -> str:
        """The password. OSError when its file cannot be read."""
        return Path(self.password_file).read_text().strip() if self.password_file else self.password

    def settings(self, weights: Mapping[str, float]) -> SharedSettings:
        """As the shared index takes them. `weights`: by tier."""
        return SharedSettings(
            budget=seconds(self.lookup_budget) or 0.0,
            most_blocks=self.lookup_blocks,
            ttl=int(seconds(self.ttl) or 0),
            most_pending_bytes=self.max_pending_bytes,
            read_only=self.read_only,
            weights={name.lower(): weight for name, weight in weights.items()},
        )
