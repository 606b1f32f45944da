"""A gRPC server: listening sockets, their connections, and how both end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping

from epp.transport.call import Handler, TlsFactory
from epp.transport.limits import Limits, TransportStats
from epp.transport.protocol import SocketProtocol

log = logging.getLogger(__name__)

_BACKLOG = 1024
_LAST_WORDS_SECONDS = 1.0


class Server:
    """`handlers` maps `/package.Service/Method` to what makes a stream of a call; others get UNIMPLEMENTED.

    `start`, then some day `drain`, then `close`. `stats` is live.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], *, limits: Limits | None = None, tls: TlsFactory | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.stats = TransportStats()
        self.draining = False
        self._handlers = dict(handlers)
        self._tls = tls
        self._listening: list[asyncio.Server] = []
        self._open: set[SocketProtocol] = set()
        self._empty = asyncio.Event()
        self._empty.set()
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
            listening = await self._loop.create_server(self._protocol, sock=sock, backlog=_BACKLOG)
        else:
            listening = await self._loop.create_server(self._protocol, host or None, port, backlog=_BACKLOG)
        self._listening.append(listening)
        bound: int = listening.sockets[0].getsockname()[1]
        return bound

    async def drain(self, grace_seconds: float) -> bool:
        """Let everything end in its own time, at most `grace_seconds`. True when nothing was left.

        Every connection is asked for no more streams (GOAWAY) and closes after its last one. New connections are still
        taken, and served in the same way: a gateway that has just been asked to go opens one if it knows no other
        picker yet, and refusing it would fail its requests. `close` ends that.
        """
        self.draining = True
        for protocol in list(self._open):
            protocol.drain()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._empty.wait()
        except TimeoutError:
            log.warning("%d streams were open after %g s of draining", self.stats.streams, grace_seconds)
            return False
        return True

    async def close(self) -> None:
        """Stop listening and end what is left: open calls get UNAVAILABLE."""
        self.draining = True
        for listening in self._listening:
            listening.close()
        self._listening.clear()
        for protocol in list(self._open):
            protocol.terminate()
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._empty.wait()
        except TimeoutError:
            for protocol in list(self._open):
                protocol.kill()
            await self._empty.wait()

    # What connections call.

    def opened(self, protocol: SocketProtocol) -> bool:
        """A connection was made; False: there are too many."""
        self._open.add(protocol)
        self._empty.clear()
        self.stats.connections += 1
        self.stats.connections_total += 1
        if len(self._open) > self.limits.connections:
            self.stats.hit("connections")
            return False
        return True

    def gone(self, protocol: SocketProtocol) -> None:
        """A connection is closed."""
        self._open.discard(protocol)
        self.stats.connections -= 1
        if not self._open:
            self._empty.set()

    def _protocol(self) -> SocketProtocol:
        return SocketProtocol(self, self._handlers, self._tls() if self._tls is not None else None)
