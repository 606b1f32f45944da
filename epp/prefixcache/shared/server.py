"""Where the server is, in the forms that llm-d-router takes, and a client for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

DEFAULT_ADDRESS = "redis://127.0.0.1:6379"
_SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
_SCAN = 1024
_OPTIONS = frozenset({"db", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


def server_url(address: str) -> str:
    """`host:port`, or a URL with the scheme redis, rediss, valkey, valkeys or unix, as redis-py takes it.

    Errors name no password: ValueError for another scheme, a bad port, an option that is not known.
    """
    scheme, separator, rest = address.strip().partition("://")
    if not separator:
        scheme, rest = "redis", scheme
    if scheme not in _SCHEMES or not rest:
        raise ValueError("address: write host:port, redis://host:port/db, rediss://, valkey://, valkeys:// or unix://")
    url = f"{_SCHEMES[scheme]}://{rest}"
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError("address: the port must be a number from 1 to 65535") from error
    if port == 0:
        raise ValueError("address: the port must be a number from 1 to 65535")
    unknown = sorted({name for name, _ in parse_qsl(parts.query)} - _OPTIONS)
    if unknown:
        raise ValueError(f"address: option {unknown[0]} is not known; there are {', '.join(sorted(_OPTIONS))}")
    return url


def shown(url: str) -> str:
    """The address without user and password."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"


class Server:
    """A client that does not connect before it is used, and tries everything once. RuntimeError without redis-py.

    `timeout`: seconds for an exchange. `user`, `password` and `db` go before those of the URL.
    """

    def __init__(
        self, url: str, *, connections: int, timeout: float, user: str = "", password: str = "", db: int = 0
    ) -> None:
        try:
            from redis.asyncio import ConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise RuntimeError("redisConfig needs the package redis: pip install 'epp[redis]'") from error
        self.shown = shown(url)
        options: dict[str, Any] = {
            "max_connections": connections,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,  # nothing here needs RESP3, and old servers do not have it
        }
        pool = ConnectionPool.from_url(url, **options)
        told = {"username": user, "password": password, "db": db}
        pool.connection_kwargs.update({name: value for name, value in told.items() if value})
        self._client: Any = Redis(connection_pool=pool)
        self._pool: Any = pool

    async def run(self, script: str, *arguments: object) -> Any:
        """One script's reply."""
        return await self._client.execute_command("EVAL", script, 0, *arguments)

    async def run_all(self, scripts: Sequence[tuple[object, ...]]) -> list[Any]:
        """Several scripts, each with its arguments, sent together. The first error of one is raised after all ran."""
        pipeline = self._client.pipeline(transaction=False)
        for script, *arguments in scripts:
            pipeline.execute_command("EVAL", script, 0, *arguments)
        replies: list[Any] = await pipeline.execute()
        return replies

    async def get(self, names: Sequence[bytes]) -> list[bytes | None]:
        """The values of these names."""
        values: list[bytes | None] = await self._client.mget(names)
        return values

    async def members(self, name: str) -> set[bytes]:
        """The members of a set."""
        found: set[bytes] = await self._client.smembers(name)
        return found

    async def scan(self, cursor: int, beginning: str) -> tuple[int, list[bytes]]:
        """Some names that begin so, and where to go on; 0: that was all."""
        following, names = await self._client.scan(cursor, match=beginning + "*", count=_SCAN)
        return int(following), names

    async def close(self) -> None:
        """Close all connections, broken ones too."""
        with suppress(Exception):
            await self._client.aclose()
            await self._pool.disconnect()


def unreachable(error: Exception) -> bool:
    """Whether the server is away or busy, rather than unwilling: then the same is tried again later."""
    from redis.exceptions import BusyLoadingError, ConnectionError, ReadOnlyError, TimeoutError

    return isinstance(error, OSError | BusyLoadingError | ConnectionError | ReadOnlyError | TimeoutError)
