"""A gRPC server: listening sockets, their connections, and how both end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping

from epp.transport.call import Handler, TlsFactory
from epp.transport.limits import Limits, TransportStats
from epp.transport.protocol import SocketProtocol

log = logging.getLogger(__name__)

_GOAWAY_PAUSE = 0.1  # seconds for the first GOAWAY to reach the peer before streams it opened meanwhile are counted


class Server:
    """`handlers` maps `/package.Service/Method` to what makes a stream of a call.

    `start`, then some day `drain` (no new connections, no new streams, open ones end in their own time), then `close`.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], *, limits: Limits | None = None, tls: TlsFactory | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.stats = TransportStats()
        self._handlers = dict(handlers)
        self._tls = tls
        self._listening: list[asyncio.Server] = []
        self._open: set[SocketProtocol] = set()
        self._empty = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that `start` ran on."""
        if self._loop is None:
            raise RuntimeError("the server has not been started")
        return self._loop

    async def start(self, host: str, port: int, *, sock: socket.socket | None = None) -> int:
        """Listen; returns the port (0 asks the system for one). `host` "" is every address, IPv4 and IPv6."""
        self._loop = asyncio.get_running_loop()
        if sock is not None:
            listening = await self._loop.create_server(self._protocol, sock=sock, backlog=1024)
        else:
            listening = await self._loop.create_server(self._protocol, host or None, port, backlog=1024)
        self._listening.append(listening)
        bound: int = listening.sockets[0].getsockname()[1]
        return bound

    async def drain(self, grace: float) -> bool:
        """Take no more, let open streams end for up to `grace` seconds. True when all did."""
        self._stop_listening()
        for protocol in list(self._open):
            protocol.go_away(final=False)
        await asyncio.sleep(min(_GOAWAY_PAUSE, grace))
        for protocol in list(self._open):
            protocol.go_away(final=True)
        if self._open:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), grace)
            except TimeoutError:
                log.warning("%d streams were still open after %.0f s of draining", self.stats.streams, grace)
                return False
        return True

    async def close(self) -> None:
        """End everything now."""
        self._stop_listening()
        for protocol in list(self._open):
            protocol.abort()
        if self._open:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), 1.0)
        for protocol in list(self._open):
            protocol.kill()

    # What connections call.

    def opened(self, protocol: SocketProtocol) -> None:
        """A connection was made."""
        self._open.add(protocol)
        self.stats.connections += 1
        self.stats.connections_total += 1

    def gone(self, protocol: SocketProtocol) -> None:
        """A connection is closed."""
        self._open.discard(protocol)
        self.stats.connections -= 1
        if not self._open:
            self._empty.set()

    def _protocol(self) -> SocketProtocol:
        return SocketProtocol(self, self._handlers, self._tls() if self._tls is not None else None)

    def _stop_listening(self) -> None:
        for listening in self._listening:
            listening.close()
        self._listening.clear()
