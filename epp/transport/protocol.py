"""The socket side of a connection: asyncio in, TLS if asked for, one write per wake-up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from epp.transport.call import Handler, TlsCodec, TlsError
from epp.transport.connection import Connection
from epp.transport.frames import PREFACE

if TYPE_CHECKING:
    from epp.transport.server import Server

log = logging.getLogger(__name__)

_SOCKET_BUFFER: Final = 1 << 18
"""Bytes waiting for the kernel above which nothing more is produced: small beside what other streams must wait for."""
_LINGER_SECONDS: Final = 1.0
"""How long a peer that we sent away may take to read why; closing at once could make its kernel drop our last words."""
_NEWCOMER_SECONDS: Final = 1.0
"""How long a connection is served before a drain asks the peer to go. A client that reads GOAWAY together with our
SETTINGS has had no chance to use the connection: grpcio's counts it as a failed attempt and waits a second and more
before the next, and can stop trying altogether."""
_HTTP_1: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 53\r\n\r\n"
    b"This port speaks gRPC: HTTP/2 with prior knowledge.\r\n"
)
_METHODS: Final = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ")
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3))
"""A peer whose machine died is noticed after two minutes, and what its streams held is given back."""


class SocketProtocol(asyncio.Protocol):
    """One accepted socket."""

    def __init__(self, server: Server, handlers: Mapping[str, Handler], tls: TlsCodec | None) -> None:
        self._server = server
        self._handlers = handlers
        self._tls = tls
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the handshake, then for a stalled peer, then for the end
        self._since = 0.0  # when the peer could begin to use the connection
        self._closing = False
        self.connection: Connection | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's have the methods, not the class
        transport.set_write_buffer_limits(high=_SOCKET_BUFFER)
        server = self._server
        loop = server.loop
        self._since = loop.time()
        _keep_alive(transport.get_extra_info("socket"))
        self.connection = Connection(
            self._handlers,
            limits=server.limits,
            stats=server.stats,
            clock=loop.time,
            call_later=loop.call_later,
            wake=self._wake,
            peer=_address(transport.get_extra_info("peername")),
        )
        if not server.opened(self):
            transport.abort()
            return
        self._timer = loop.call_later(server.limits.handshake_seconds, self._give_up, "handshake_seconds")
        if self._tls is None:
            self._flush()

    def data_received(self, data: bytes) -> None:
        """Everything that one read brought."""
        connection = self.connection
        if connection is None or self._closing:
            return
        try:
            if self._tls is not None:
                data = b"".join(self._tls.feed(data))
            if data:
                if not connection.greeted:
                    self._greet(connection, data)
                else:
                    connection.receive(data)
        except TlsError as error:
            self._tls_failed(error)
            return
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._set_timer(None)
        self._transport = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.lost()
            connection.release()
        self._server.gone(self)

    def pause_writing(self) -> None:
        """The peer does not take what we have: produce nothing, and read nothing that would lead to more."""
        if self.connection is not None and self._transport is not None and not self._closing:
            self.connection.outbox.set_writable(False)
            self._transport.pause_reading()
            self._set_timer(
                self._server.loop.call_later(self._server.limits.stalled_seconds, self._give_up, "stalled_seconds")
            )

    def resume_writing(self) -> None:
        """The peer took most of it."""
        if self.connection is not None and self._transport is not None and not self._closing:
            self._set_timer(None)
            self._transport.resume_reading()
            self.connection.outbox.set_writable(True)

    # What the server calls.

    def drain(self) -> None:
        """Ask the peer for no more streams, once it had the time to open some; the socket closes after the last one."""
        if self.connection is None:
            return
        loop = self._server.loop
        early = self._since + _NEWCOMER_SECONDS - loop.time()
        if early > 0:
            loop.call_later(early, self.drain)
        else:
            self.connection.drain()

    def terminate(self) -> None:
        """End at once: open calls are told so."""
        if self.connection is not None and not self._closing:
            self.connection.terminate()
            self._flush()
            if not self._closing:
                self._close()

    def kill(self) -> None:
        """Close the socket without another byte."""
        if self._transport is not None:
            self._transport.abort()

    # Inside.

    def _greet(self, connection: Connection, data: bytes) -> None:
        """The first bytes: tell what else it may be from what is HTTP/2."""
        if data.startswith(_METHODS):
            log.info("connection from %s ends: it speaks HTTP/1", connection.peer)
            self._server.stats.fault("HTTP_1_1")
            self._send(_HTTP_1)
            self._close()
            return
        if self._tls is None and data[:2] == b"\x16\x03":
            log.warning("connection from %s ends: it speaks TLS, this port does not", connection.peer)
        elif not data.startswith(PREFACE[: len(data)]):
            log.info("connection from %s does not speak HTTP/2", connection.peer)
        connection.receive(data)
        if connection.greeted:
            self._set_timer(None)
            self._since = self._server.loop.time()
            if self._server.draining:
                self.drain()

    def _wake(self) -> None:
        """Late replies of one loop iteration leave in one write."""
        self._server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        connection = self.connection
        if connection is None or self._closing:
            return
        if self._tls is None or self._tls.handshake_done:
            self._send(connection.take())
            if connection.over:
                self._close()
        elif self._tls is not None:
            self._write(self._tls.take())

    def _send(self, data: bytes) -> None:
        tls = self._tls
        if tls is not None:
            if data:
                try:
                    tls.seal(data)
                except TlsError as error:
                    self._tls_failed(error)
                    return
            data = tls.take()
        self._write(data)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _tls_failed(self, error: TlsError) -> None:
        self._server.stats.tls_failures += 1
        if self.connection is not None:
            log.info("connection from %s ends: %s", self.connection.peer, error)
        if self._tls is not None:
            self._write(self._tls.take())  # an alert that says why
        self._close()

    def _close(self) -> None:
        """Say no more, and wait a moment for the peer to have read it and to close."""
        transport = self._transport
        if transport is None or self._closing:
            return
        self._closing = True
        if self._tls is not None and self._tls.handshake_done:
            self._tls.close()
            self._write(self._tls.take())
        if self.connection is not None:
            self.connection.lost()
        if transport.is_closing():
            return
        transport.resume_reading()  # and drop what comes
        with contextlib.suppress(OSError):  # the peer may be gone already
            transport.write_eof()
        self._set_timer(self._server.loop.call_later(_LINGER_SECONDS, transport.abort))

    def _give_up(self, limit: str) -> None:
        self._server.stats.hit(limit)
        if self.connection is not None:
            log.info("connection from %s ends: %s", self.connection.peer, limit)
        if self._transport is not None:
            self._transport.abort()

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer


def _address(peer: object) -> str:
    """`ip:port`, `[ip]:port`, or what the system calls a socket that has neither."""
    if isinstance(peer, tuple):
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return str(peer or "unix")


def _keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel probe an idle peer (gRPC peers may be idle for hours)."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
