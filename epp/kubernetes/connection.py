"""The connection to the API server: whose certificate is believed, who we are, one pool of sockets for everybody.

`epp.kubernetes.kubeconfig` says where the server is and how to sign in. Bodies are read as bytes and decoded by
`msgspec` where they are used: the models of the package `kubernetes` cost milliseconds per pod.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec

from epp.api.errors import ConfigError
from epp.kubernetes.credentials import Certificate
from epp.kubernetes.kubeconfig import Access, from_kubeconfig, from_service_account

CALL_SECONDS = 10.0
"""For one call. A list of 500 pods has 5 MB; an API server that takes longer is in trouble."""
_CONNECT_SECONDS = 5.0
_MAX_LINE = 16 << 20
"""Bytes of one watch event: objects have at most 1.5 MiB, with room for escapes."""
_AGENT = "epp"
_SOCKETS = 100
"""Each watch holds one for itself; what is asked in between must never wait for one."""


class ApiError(Exception):
    """The API server answered with an error. `status` is the HTTP status, or the code of a `Status` in a watch."""

    def __init__(self, status: int, message: str, what: str) -> None:
        super().__init__(f"{what}: status {status}, {message or 'no reason given'}")
        self.status = status


class ApiConnection:
    """Made by `connect`; `close` it. Raises `OSError`, `TimeoutError` or `aiohttp.ClientError` when it fails."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._host = access.server
        self._believed: tuple[Certificate | None, str] = None, access.authorities.pem()
        self._tls = access.tls(None)
        # Per call and not of the session: a session would set them for another server's redirect, too.
        self._way: dict[str, Any] = {"server_hostname": access.server_name or None, "proxy": access.proxy or None}
        self._headers = {"Accept": "application/json", **({} if access.compressed else {"Accept-Encoding": "identity"})}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_SOCKETS),
            timeout=timeout,
            read_bufsize=1 << 18,
            headers={"User-Agent": _AGENT},
        )

    @property
    def host(self) -> str:
        """Where the API server is, for messages."""
        return str(self._host)

    async def close(self) -> None:
        """Close all sockets."""
        await self._session.close()

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        """The body of an answer. `ApiError` for a status that is not 200."""
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=_CONNECT_SECONDS)
        async with self._ask("GET", path, params=params, timeout=timeout) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise ApiError(answer.status, _message(body), f"GET {path}")
            return body

    @asynccontextmanager
    async def watch(self, path: str, params: Mapping[str, str], silence: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch. `silence`: seconds without a byte after which the connection counts as dead."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence)
        async with self._ask("GET", path, params={**params, "watch": "true"}, timeout=timeout) as answer:
            if answer.status != 200:
                raise ApiError(answer.status, _message(await answer.read()), f"watch {path}")
            yield _lines(answer.content)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Implements `epp.kubernetes.raw_api.RawApi`."""
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=_CONNECT_SECONDS)
        data = None if body is None else msgspec.json.encode(body)
        async with self._ask(method, path, data=data, timeout=timeout) as answer:
            said = await answer.read()
            try:
                document = msgspec.json.decode(said)
            except msgspec.DecodeError:
                document = {"message": said[:200].decode("utf-8", "replace")}
            return answer.status, document if isinstance(document, dict) else {}

    @asynccontextmanager
    async def _ask(self, method: str, path: str, **what: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, with the credentials and authorities of now. A status of 401 is told to who keeps them."""
        try:
            identity = await self._access.credentials.identity()
            believed = identity.certificate, self._access.authorities.pem()
            if believed != self._believed:
                self._tls, self._believed = self._access.tls(identity.certificate), believed
        except Exception as error:  # whatever a way to sign in raises: a file that is being replaced, a command
            raise OSError(f"the credentials for {self._host} cannot be read: {error}") from error
        headers = dict(self._headers)
        if identity.authorization:
            headers["Authorization"] = identity.authorization
        if "data" in what:
            headers["Content-Type"] = "application/json"
        tls = True if self._tls is None else self._tls
        async with self._session.request(
            method, self._host + path, headers=headers, ssl=tls, **self._way, **what
        ) as answer:
            if answer.status == 401:
                self._access.credentials.refused()
            yield answer


def _now() -> datetime:
    return datetime.now(UTC)


async def connect(
    environment: Mapping[str, str] = os.environ, *, wall_clock: Callable[[], datetime] = _now
) -> ApiConnection:
    """In a cluster with the pod's service account, elsewhere with `$KUBECONFIG` or `~/.kube/config`.

    `ConfigError`: neither is there, something in them is not supported, or the package is not installed.
    """
    try:
        import kubernetes  # noqa: F401
    except ImportError:
        raise ConfigError(
            "endpoints from Kubernetes need the package `kubernetes`",
            path="--pool-name",
            fix="pip install 'epp[kubernetes]'",
        ) from None
    if environment.get("KUBERNETES_SERVICE_HOST") and not environment.get("KUBECONFIG"):
        access = await asyncio.to_thread(from_service_account, environment)
    else:
        paths = environment.get("KUBECONFIG") or "~/.kube/config"
        access = await asyncio.to_thread(from_kubeconfig, paths, environment, wall_clock)
    try:
        access.tls((await access.credentials.identity()).certificate)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no credentials for {access.server}: {error}", path="kubeconfig") from error
    return ApiConnection(access)


def _message(body: bytes) -> str:
    """The message of a `Status`, or what the body says."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:200].decode("utf-8", "replace").strip()
    return str(document.get("message", "")) if isinstance(document, dict) else ""


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however they were cut: an object may be longer than any buffer."""
    rest = bytearray()
    async for piece in content.iter_any():
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            rest += piece[start:end]
            if rest:
                yield bytes(rest)
                rest.clear()
            start = end + 1
        rest += piece[start:]
        if len(rest) > _MAX_LINE:
            raise ApiError(500, f"an event of more than {_MAX_LINE} bytes", "watch")
