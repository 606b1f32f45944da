"""The client of the package `kubernetes`: one pool of sockets for everybody, and who is believed and shown with it.

The package settles authorities and certificate when a client is made, but both are replaced while the picker runs. What
is believed anew gets a client of its own, with new sockets; the one before is closed once the last answer that came
through it has ended: a watch goes on. Nothing but its transport is used: the models cost 0.5 to 1.2 ms per pod.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epp.kubernetes.credentials import Certificate
from epp.kubernetes.kubeconfig import Access

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

_AGENT = "epp"
_SOCKETS = 100
"""Each watch holds one for itself; what is asked in between must never wait for one."""
_BUFFER = 1 << 18
"""Bytes that are read ahead of whoever reads an answer; the package's 2 MB would do no more for lines that are put
together as they come."""


@dataclass(eq=False, slots=True)
class _Pool:
    """A client with its sockets. `answers`: how many are being asked for or read."""

    client: ApiClient
    believed: tuple[Certificate | None, str]
    answers: int = 0


class Clients:
    """The client for what is believed now, and those of before with the answers that come through them still."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._newest: _Pool | None = None
        self._former: list[_Pool] = []
        self._closed = False

    def believe(self, certificate: Certificate | None) -> None:
        """Calls from now on show this certificate, and believe the authorities of now.

        `OSError`, `ValueError`: one of them cannot be used, and all stays as it is.
        """
        believed = certificate, self._access.authorities.pem()
        if self._newest is not None and believed == self._newest.believed:
            return
        made = _Pool(_client(self._access, *believed), believed)
        if self._newest is not None:
            self._former.append(self._newest)
        self._newest = made

    @asynccontextmanager
    async def newest(self) -> AsyncIterator[ApiClient]:
        """The client for one call, whose sockets stay open until that has ended. `believe` comes before."""
        pool = self._newest
        assert pool is not None
        pool.answers += 1
        try:
            await self._close_former()
            if self._closed:  # a client that is asked again would open new sockets
                raise RuntimeError(f"the connection to {self._access.server} is closed")
            yield pool.client
        finally:
            pool.answers -= 1
            await self._close_former()

    async def close(self) -> None:
        """Close all sockets; what is still being read breaks off."""
        self._closed = True
        pools = [*self._former, *([self._newest] if self._newest else [])]
        self._former.clear()
        for pool in pools:
            await pool.client.close()  # type: ignore[no-untyped-call]

    async def _close_former(self) -> None:
        for pool in [pool for pool in self._former if not pool.answers]:
            if pool in self._former:  # nobody else has, while this one waited for another
                self._former.remove(pool)
                await pool.client.close()  # type: ignore[no-untyped-call]


def _client(access: Access, certificate: Certificate | None, authorities: str) -> ApiClient:
    """It opens no socket before its first call."""
    from kubernetes.aio.client import ApiClient, Configuration

    settings = Configuration(
        host=access.server,
        ca_cert_data=authorities or None,
        verify_ssl=access.verify,
        tls_server_name=access.server_name or None,
        proxy=access.proxy or None,
        connection_pool_maxsize=_SOCKETS,
        retries=None,  # who asks knows how long to wait
        # The environment has been asked for a proxy already, as Go programs do it.
        client_session_kwargs={"trust_env": False, "read_bufsize": _BUFFER},
    )
    # On from Python 3.13, and more than Go asks for: authorities of many clusters do not say what it wants.
    settings.disable_strict_ssl_verification = True
    client = ApiClient(settings)
    client.user_agent = _AGENT
    if certificate is not None:
        certificate.load_into(client.rest_client.ssl_context)
    return client
