"""A kept HTTP/1.1 connection that sends the same GET again and again.

Why not an HTTP client library: a scrape of an 80 KB page costs more than twice the CPU there, and the collector sends
hundreds a second (`docs/data-layer.md` has the figures). No task, no future and no timer is made per request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from epp.api.plugin import Clock, ScrapeTarget
from epp.datalayer.http_response import HttpError, HttpResponse, ResponseReader

READ_SIZE = 256 * 1024
Done = Callable[[HttpResponse | Exception], None]


class CpuMeter:
    """Adds up the CPU seconds spent between `enter` and `leave`; nested pairs count once."""

    __slots__ = ("_clock", "_depth", "_entered", "total")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._depth = 0
        self._entered = 0.0
        self.total = 0.0

    def enter(self) -> None:
        """Start counting."""
        if self._depth == 0:
            self._entered = self._clock()
        self._depth += 1

    def leave(self) -> None:
        """Stop counting."""
        self._depth -= 1
        if self._depth == 0:
            self.total += self._clock() - self._entered


class ReadBuffer:
    """One buffer that all connections of a loop read into: each empties it before the next one reads."""

    def __init__(self, size: int = READ_SIZE) -> None:
        self.view = memoryview(bytearray(size))


class HttpGet:
    """Asks one target. At most one request is under way; `done` gets its response, or what went wrong.

    A request on a kept connection that the server closed in the meantime is sent once more on a new one. `cancel`
    ends a request that takes too long; `done` is not called for it. `connect_seconds` is the time of the last TCP
    (and TLS) connect, NaN before it.
    """

    def __init__(
        self, target: ScrapeTarget, done: Done, *, buffer: ReadBuffer, meter: CpuMeter, clock: Clock, max_body: int
    ) -> None:
        self.target = target
        self.connect_seconds = float("nan")
        self._done = done
        self._buffer = buffer
        self._meter = meter
        self._clock = clock
        self._max_body = max_body
        self._request = request_bytes(target)
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._connecting is not None or (self._connection is not None and self._connection.waiting)

    def get(self) -> None:
        """Send the request now, or as soon as there is a connection."""
        if self._closed or self.busy:
            raise RuntimeError("closed or already asking")
        if self._connection is None:
            self._connect()
        else:
            self._connection.send(self._request)

    def socket(self) -> socket.socket | None:
        """The connected socket, for reading its TCP statistics."""
        if self._connection is None or self._connection.transport is None:
            return None
        found: socket.socket | None = self._connection.transport.get_extra_info("socket")
        return found

    def cancel(self) -> asyncio.Task[None] | None:
        """Give up the request under way and its connection. Returns the task of a connect that is being undone."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.abort()
        return connecting

    def close(self) -> asyncio.Task[None] | None:
        """Close for good; returns what `cancel` does."""
        self._closed = True
        return self.cancel()

    def _connect(self) -> None:
        self._connecting = asyncio.get_running_loop().create_task(self._connect_and_send())

    async def _connect_and_send(self) -> None:
        target = self.target
        started = self._clock()
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self),
                target.host,
                target.port,
                ssl=target.tls,
                server_hostname=(target.server_name or target.host) if target.tls is not None else None,
            )
        except Exception as error:  # resolver, socket, TLS and IDNA errors have no narrower common base
            self._connecting = None
            self._done(error)
            return
        self._connecting = None
        self.connect_seconds = self._clock() - started
        if connection.lost:
            self._done(HttpError("connection closed before a request was sent"))
            return
        self._connection = connection
        connection.send(self._request)

    def _answered(self, connection: _Connection, result: HttpResponse | Exception) -> None:
        if connection is not self._connection:
            return  # cancelled in the meantime
        if isinstance(result, Exception) or not result.reusable:
            self._connection = None
            connection.abort()
        self._done(result)

    def _unasked(self, connection: _Connection) -> None:
        """Bytes that belong to no request: the next response could be mistaken, so the connection is given up."""
        if connection is self._connection:
            self._connection = None
        connection.abort()

    def _gone(self, connection: _Connection, error: Exception, *, stale: bool) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        if stale:
            self._connect()
        elif connection.waiting:
            connection.waiting = False
            self._done(error)


class _Connection(asyncio.BufferedProtocol):
    """One connection; reads straight into the shared buffer."""

    def __init__(self, owner: HttpGet) -> None:
        self._owner = owner
        self._reader = ResponseReader(owner._max_body)
        self._view = owner._buffer.view
        self._meter = owner._meter
        self.transport: asyncio.Transport | None = None
        self.waiting = False
        self.lost = False
        self._answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def send(self, request: bytes) -> None:
        assert self.transport is not None
        self.waiting = True
        self._meter.enter()
        self.transport.write(request)
        self._meter.leave()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        self._meter.enter()  # until buffer_updated, so that the read system call is counted
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if not self.waiting:
                self._owner._unasked(self)
                return
            try:
                response = self._reader.feed(self._view[:nbytes])
            except HttpError as error:
                self._end(error)
                return
            if response is not None:
                self._end(response)
        finally:
            self._meter.leave()

    def eof_received(self) -> bool:
        if self.waiting and self._reader.started:
            try:
                self._end(self._reader.eof())
            except HttpError as error:
                self._end(error)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        stale = self.waiting and self._answered > 0 and not self._reader.started
        cut = "in the middle of" if self._reader.started else "before"
        self._owner._gone(self, exc or HttpError(f"connection closed {cut} a response"), stale=stale)

    def _end(self, result: HttpResponse | Exception) -> None:
        self.waiting = False
        self._answered += 1
        self._owner._answered(self, result)


def request_bytes(target: ScrapeTarget) -> bytes:
    """The request head. Raises ValueError for a path or host that could smuggle in another header."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    line = f"{host}{target.path}"
    if not target.path.startswith("/") or any(character <= " " or character >= "\x7f" for character in line):
        raise ValueError(f"cannot ask for {line!r}: a path starts with / and has no spaces or control characters")
    return (
        f"GET {target.path} HTTP/1.1\r\nhost: {host}:{target.port}\r\nuser-agent: epp\r\n"
        "accept: text/plain;version=0.0.4, application/json;q=0.9, */*;q=0.1\r\naccept-encoding: identity\r\n\r\n"
    ).encode()
