"""The connection to the API server: what is asked, by whom, and what came of it.

`epp.kubernetes.kubeconfig` says where the server is and how to sign in. Everything goes through the aio client of the
package `kubernetes` (`epp.kubernetes.clients`); bodies stay bytes, which `msgspec` decodes where they are used.
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
from epp.kubernetes.clients import Clients
from epp.kubernetes.kubeconfig import Access, from_kubeconfig, from_service_account

CALL_SECONDS = 10.0
"""For one call. A list of 500 pods has 5 MB; an API server that takes longer is in trouble."""
_CONNECT_SECONDS = 5.0
_MAX_LINE = 16 << 20
"""Bytes of one watch event: objects have at most 1.5 MiB, with room for escapes."""


class ApiError(Exception):
    """The API server answered with an error. `status` is the HTTP status, or the code of a `Status` in a watch."""

    def __init__(self, status: int, message: str, what: str) -> None:
        super().__init__(f"{what}: status {status}, {message or 'no reason given'}")
        self.status = status


class ApiConnection:
    """Made by `connect`; `close` it. Raises `OSError`, `TimeoutError` or `aiohttp.ClientError` when it fails."""

    def __init__(self, access: Access, clients: Clients) -> None:
        self._access = access
        self._host = access.server
        self._clients = clients
        self._headers = {"Accept": "application/json", **({} if access.compressed else {"Accept-Encoding": "identity"})}

    @property
    def host(self) -> str:
        """Where the API server is, for messages."""
        return str(self._host)

    async def close(self) -> None:
        """Close all sockets."""
        await self._clients.close()

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
        async with self._ask(method, path, body=body, timeout=timeout) as answer:
            said = await answer.read()
            try:
                document = msgspec.json.decode(said)
            except msgspec.DecodeError:
                document = {"message": said[:200].decode("utf-8", "replace")}
            return answer.status, document if isinstance(document, dict) else {}

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - the client's, with one for each phase
        params: Mapping[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request, with the credentials and authorities of now. A status of 401 is told to who keeps them."""
        try:
            identity = await self._access.credentials.identity()
            self._clients.believe(identity.certificate)
        except Exception as error:  # whatever a way to sign in raises: a file that is being replaced, a command
            raise OSError(f"the credentials for {self._host} cannot be read: {error}") from error
        headers = {**self._headers, **({"Authorization": identity.authorization} if identity.authorization else {})}
        async with self._clients.newest() as client:
            request = await client.param_serialize(method, path, query_params=params, header_params=headers, body=body)
            said = await client.call_api(*request, _request_timeout=timeout)
            async with said.response as answer:
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
    clients = Clients(access)
    try:
        clients.believe((await access.credentials.identity()).certificate)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no credentials for {access.server}: {error}", path="kubeconfig") from error
    return ApiConnection(access, clients)


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
