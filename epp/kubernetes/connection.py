"""The connection to the API server: whose certificate is believed, who we are, one pool of sockets for everybody.

Where the server is and how to sign in comes from the `kubernetes` package (in the cluster, or a kubeconfig with all its
ways to sign in). Bodies are read as bytes and decoded by `msgspec` where they are used: the package's own models cost
milliseconds per pod.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from epp.api.errors import ConfigError

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

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self._host = configuration.host.rstrip("/")
        self._tls = _tls(configuration)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_SOCKETS, ssl=self._tls if self._tls is not None else True),
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
        async with self._session.get(
            self._host + path, params=params, headers=await self._headers(), timeout=timeout
        ) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise ApiError(answer.status, _message(body), f"GET {path}")
            return body

    @asynccontextmanager
    async def watch(self, path: str, params: Mapping[str, str], silence: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch. `silence`: seconds without a byte after which the connection counts as dead."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence)
        async with self._session.get(
            self._host + path, params={**params, "watch": "true"}, headers=await self._headers(), timeout=timeout
        ) as answer:
            if answer.status != 200:
                raise ApiError(answer.status, _message(await answer.read()), f"watch {path}")
            yield _lines(answer.content)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Implements `epp.kubernetes.raw_api.RawApi`."""
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=_CONNECT_SECONDS)
        headers = {**await self._headers(), "Content-Type": "application/json"}
        data = None if body is None else msgspec.json.encode(body)
        async with self._session.request(
            method, self._host + path, data=data, headers=headers, timeout=timeout
        ) as answer:
            said = await answer.read()
            try:
                document = msgspec.json.decode(said)
            except msgspec.DecodeError:
                document = {"message": said[:200].decode("utf-8", "replace")}
            return answer.status, document if isinstance(document, dict) else {}

    async def _headers(self) -> dict[str, str]:
        """Asked for each call: tokens of service accounts live for an hour, and the file is read again every minute."""
        try:
            settings = await self._configuration.auth_settings()
        except Exception as error:  # whatever a way to sign in raises: a file that is being replaced, a command
            raise OSError(f"the credentials for {self._host} cannot be read: {error}") from error
        bearer = settings.get("BearerToken")
        headers = {"Accept": "application/json"}
        if bearer is not None and bearer.get("value"):
            headers["Authorization"] = bearer["value"].strip()
        return headers


async def connect(environment: Mapping[str, str] = os.environ) -> ApiConnection:
    """In a cluster with the pod's service account, elsewhere with `$KUBECONFIG` or `~/.kube/config`.

    `ConfigError`: neither is there, or the package is not installed.
    """
    try:
        from kubernetes.aio import client, config
    except ImportError:
        raise ConfigError(
            "endpoints from Kubernetes need the package `kubernetes`",
            path="--pool-name",
            fix="pip install 'epp[kubernetes]'",
        ) from None
    configuration = client.Configuration()
    try:
        if environment.get("KUBERNETES_SERVICE_HOST") and not environment.get("KUBECONFIG"):
            await asyncio.to_thread(config.load_incluster_config, configuration)
        else:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=environment.get("KUBECONFIG") or None, client_configuration=configuration
            )
    except (config.ConfigException, OSError, TypeError) as error:
        raise ConfigError(
            f"no Kubernetes API server is known: {error}",
            path="--pool-name",
            fix="run in a pod with a service account, set KUBECONFIG, or list endpoints with `file-discovery`",
        ) from error
    return ApiConnection(configuration)


def _tls(configuration: Any) -> ssl.SSLContext | None:
    if not configuration.host.startswith("https:"):
        return None
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


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
