"""The socket side of a connection: asyncio in, TLS if asked for, one write per wake-up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from epp.transport.call import Handler, TlsCodec, TlsError
from epp.transport.connection import Connection

if TYPE_CHECKING:
    from epp.transport.server import Server

log = logging.getLogger(__name__)


class SocketProtocol(asyncio.Protocol):
    """One accepted socket."""

    def __init__(self, server: Server, handlers: Mapping[str, Handler], tls: TlsCodec | None) -> None:
        self._server = server
        self._handlers = handlers
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._scheduled = False
        self._handshake_timer: asyncio.TimerHandle | None = None
        self.connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        # uvloop's transport is one by behaviour, not by class.
        self._transport = transport = cast(asyncio.Transport, transport)
        server = self._server
        loop = server.loop
        peer = transport.get_extra_info("peername")
        self.connection = Connection(
            self._handlers,
            limits=server.limits,
            stats=server.stats,
            now=loop.time,
            wake=self._schedule,
            peer=f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer),
        )
        server.opened(self)
        self._handshake_timer = loop.call_later(server.limits.handshake_seconds, self._handshake_timed_out)
        if self._tls is None:
            self._flush()

    def data_received(self, data: bytes) -> None:
        """Everything that one read brought."""
        connection = self.connection
        if connection is None:
            return
        tls = self._tls
        if tls is None:
            connection.receive(data)
        else:
            try:
                for plaintext in tls.feed(data):
                    connection.receive(plaintext)
            except TlsError as error:
                self._server.stats.tls_failures += 1
                log.info("connection from %s ends: %s", connection.peer, error)
                self._write(tls.take())
                self._close()
                return
        if connection.greeted and self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        connection = self.connection
        if connection is not None:
            self.connection = None
            connection.lost()
            self._server.gone(self)
        self._transport = None

    def pause_writing(self) -> None:
        """The peer's socket is full: produce nothing, and read nothing that would lead to more."""
        if self.connection is not None:
            self.connection.writable = False
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer took what we had."""
        if self._transport is not None:
            self._transport.resume_reading()
        if self.connection is not None:
            self.connection.resume()

    def go_away(self, *, final: bool) -> None:
        """First or second step of a graceful end."""
        if self.connection is not None:
            self.connection.go_away(final=final)
            self._flush()

    def abort(self) -> None:
        """End at once."""
        connection = self.connection
        if connection is not None:
            connection.go_away(final=True)
            self._flush()
        self._close()

    def kill(self) -> None:
        """Close the socket without another byte."""
        if self._transport is not None:
            self._transport.abort()

    def _schedule(self) -> None:
        """Late replies of one loop iteration leave in one write."""
        if not self._scheduled:
            self._scheduled = True
            self._server.loop.call_soon(self._late_flush)

    def _late_flush(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        connection = self.connection
        if connection is None or self._transport is None:
            return
        tls = self._tls
        if tls is None:
            self._write(connection.take())
        else:
            if tls.handshake_done:
                out = connection.take()
                if out:
                    tls.seal(out)
            self._write(tls.take())
        if connection.failed or (connection.refusing and not connection.streams):
            self._close()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        transport = self._transport
        if transport is None:
            return
        tls = self._tls
        if tls is not None and tls.handshake_done:
            tls.close()
            self._write(tls.take())
        transport.close()

    def _handshake_timed_out(self) -> None:
        self._handshake_timer = None
        self._server.stats.hit("handshake_seconds")
        if self._transport is not None:
            self._transport.abort()
