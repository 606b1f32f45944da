"""`--transport=grpcio`: the same handlers on the reference gRPC stack, for comparison and as a way out.

Costs 5 to 17 times the CPU of our own server. Differences: the peer's reset and its disconnect look the same (RESET)
and may be preceded by `half_closed`, and TLS knows neither a minimum version above 1.2 nor a choice of cipher suites.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epp.transport.call import CloseReason, Handler, Stream
from epp.transport.certificates import load_pair
from epp.transport.limits import Limits, TransportStats

if TYPE_CHECKING:
    import grpc

_INTERNAL = 13
_UNAVAILABLE = 14
_RESET_FOLLOWS_SECONDS = 0.01
_LAST_WORDS_SECONDS = 1.0
"""How long calls that a drain ended may take to tell their clients."""


@dataclass(frozen=True, slots=True)
class GrpcioTls:
    """TLS for this stack: `pair` gives the certificate and key as PEM (ValueError: bad), and is asked again on reload.

    `client_ca`: PEM of the authorities that clients must be signed by; None: any client.
    """

    pair: Callable[[], tuple[bytes, bytes]]
    client_ca: bytes | None = None


def grpcio_tls(
    pair: Callable[[], tuple[bytes, bytes]],
    *,
    min_version: str = "",
    cipher_suites: str = "",
    client_ca: bytes | None = None,
) -> GrpcioTls:
    """TLS from the flags; ValueError names what this stack cannot do."""
    if min_version == "VersionTLS13" or cipher_suites.strip():
        flag = "--tls-min-version=VersionTLS13" if min_version == "VersionTLS13" else "--tls-cipher-suites"
        raise ValueError(f"{flag} is not available with --transport=grpcio: use the default transport, or leave it out")
    return GrpcioTls(pair, client_ca)


class GrpcioServer:
    """Serves handlers, by gRPC path, through `grpc.aio`."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        limits: Limits | None = None,
        tls: GrpcioTls | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        self._handlers = handlers
        self._limits = limits or Limits()
        self._tls = tls
        self._log = log or logging.getLogger("epp.transport")
        self._server: Any = None
        self._new_pair: tuple[bytes, bytes] | None = None
        self._calls: dict[asyncio.Task[Any], GrpcioCall] = {}
        self.stopping = False
        self.stats = TransportStats()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. `host` "" is every address, IPv4 and IPv6.

        OSError when the port is taken, RuntimeError when grpcio is not installed.
        """
        try:
            from grpc import aio
        except ImportError as error:
            raise RuntimeError(
                "--transport=grpcio needs grpcio: pip install 'epp[grpcio]', or leave the flag out"
            ) from error
        limits = self._limits
        server = aio.server(
            handlers=[_generic_handler(self)],
            options=[
                ("grpc.max_receive_message_length", limits.message),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", limits.concurrent_streams),
                ("grpc.max_metadata_size", limits.header_list),
                ("grpc.so_reuseport", 0),  # a second picker on the same port is a mistake, not a request for balancing
            ],
        )
        address = f"[{host or '::'}]:{port}" if ":" in host or not host else f"{host}:{port}"
        try:
            if self._tls is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, self._credentials(self._tls))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server
        return int(bound)

    def reload(self) -> None:
        """Use the certificate that `tls.pair` gives now for new connections. ValueError: it is bad, the old stays."""
        if self._tls is not None:
            self._new_pair = _checked(self._tls.pair())

    async def drain(self, grace: float) -> bool:
        """Take no more, let open streams end for up to `grace` seconds, then end them. True when all ended by then.

        Those that did not get UNAVAILABLE.
        """
        self.stopping = True
        if self._server is None:
            return True
        # grpc would cancel what is left, which a stream cannot tell from a client that goes away: it gets the time to
        # let us end it ourselves.
        stopped = asyncio.ensure_future(self._server.stop(grace + _LAST_WORDS_SECONDS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._calls:
                    await asyncio.wait(self._calls)
        left = dict(self._calls)
        for call in left.values():
            call.abort(_UNAVAILABLE, "the server is shutting down")
        await stopped
        await asyncio.gather(*left, return_exceptions=True)  # the streams must have heard of their end
        return not left

    async def close(self) -> None:
        """End everything at once."""
        await self.drain(0)

    def handler(self, path: str) -> Handler | None:
        """The handler of a gRPC path."""
        return self._handlers.get(path)

    async def serve(self, handler: Handler, path: str, context: Any) -> None:
        """One call, from its headers to its trailers."""
        call = GrpcioCall(path, _metadata(context.invocation_metadata()), context.peer())
        reason = CloseReason.ABORTED
        stream: Stream | None = None
        reader: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        if task is not None:
            self._calls[task] = call
            task.add_done_callback(self._calls.pop)
        self.stats.streams += 1
        self.stats.streams_total += 1
        try:
            stream = handler(call)
            reader = asyncio.create_task(self._read(context, call, stream))
            await call.write_all(context)
            reason = CloseReason.FINISHED if call.aborted is None else CloseReason.ABORTED
        except asyncio.CancelledError:
            if self.stopping:
                call.aborted = _UNAVAILABLE
            else:
                reason = CloseReason.RESET
            raise
        except Exception:
            call.aborted = _INTERNAL
            self._failed(path)
            context.set_code(_status(_INTERNAL))
            context.set_details("the picker failed to handle the call; see its log")
        finally:
            self.stats.streams -= 1
            if reader is not None:
                reader.cancel()
            if stream is not None:
                self._tell(path, stream.closed, reason)

    async def _read(self, context: Any, call: GrpcioCall, stream: Stream) -> None:
        from grpc import aio

        end: Any = aio.EOF  # type: ignore[attr-defined]
        try:
            while True:
                await call.writable(self._limits.unsent_stream)
                message = await context.read()
                if message is end:
                    # A reset ends the reading too, and says what it is a moment later.
                    await asyncio.sleep(_RESET_FOLLOWS_SECONDS)
                    if not context.cancelled():
                        stream.half_closed()
                    return
                stream.receive(message)
        except (asyncio.CancelledError, aio.UsageError):
            raise
        except Exception:
            self._failed(call.path)
            call.abort(_INTERNAL, "the picker failed to handle the message; see its log")

    def _tell(self, path: str, closed: Callable[[CloseReason], None], reason: CloseReason) -> None:
        try:
            closed(reason)
        except Exception:
            self._failed(path)

    def _failed(self, path: str) -> None:
        self.stats.handler_errors += 1
        self._log.exception("the handler of %s failed", path)

    def _credentials(self, tls: GrpcioTls) -> grpc.ServerCredentials:
        import grpc

        def configuration(pair: tuple[bytes, bytes]) -> Any:
            certificate, key = pair
            return grpc.ssl_server_certificate_configuration([(key, certificate)], tls.client_ca)

        def fetch() -> Any:
            # Asked before every handshake, from a thread of grpc's; None: nothing has changed.
            pair, self._new_pair = self._new_pair, None
            return None if pair is None else configuration(pair)

        return grpc.dynamic_ssl_server_credentials(
            configuration(_checked(tls.pair())), fetch, require_client_authentication=tls.client_ca is not None
        )


class GrpcioCall:
    """`epp.transport.call.Call` over `grpc.aio`: what is sent is queued, and one task writes it."""

    __slots__ = ("_changed", "_code", "_details", "_queue", "_room", "aborted", "metadata", "path", "peer", "unsent")

    def __init__(self, path: str, metadata: Sequence[tuple[bytes, bytes]], peer: str) -> None:
        self.path = path
        self.metadata = metadata
        self.peer = peer
        self.unsent = 0
        self.aborted: int | None = None
        self._queue: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._code: int | None = None
        self._details = ""

    def send(self, message: bytes) -> None:
        """Queue one message."""
        if self._code is None:
            self._queue.append(message)
            self.unsent += len(message)
            self._changed.set()

    def finish(self, code: int = 0, message: str = "") -> None:
        """Write the trailers after everything queued."""
        if self._code is None:
            self._code = code
            self._details = message
            self._changed.set()

    def abort(self, code: int, message: str) -> None:
        """Drop what is queued and write the trailers."""
        if self.aborted is None:
            self.aborted = code
            self._queue.clear()
            self.unsent = 0
            self._code = code
            self._details = message
            self._changed.set()

    async def write_all(self, context: Any) -> None:
        """Write what is queued until the call is finished."""
        while True:
            while self._queue:
                message = self._queue.popleft()
                await context.write(message)
                self.unsent = max(0, self.unsent - len(message))
                self._room.set()
            if self._code is not None:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._code:
            context.set_code(_status(self._code))
            context.set_details(self._details)

    async def writable(self, limit: int) -> None:
        """Wait until less than `limit` bytes are queued."""
        while self.unsent >= limit:
            self._room.clear()
            await self._room.wait()


def _generic_handler(server: GrpcioServer) -> grpc.GenericRpcHandler[bytes, bytes]:
    import grpc

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
        """Raw bytes in and out. On the wire a unary call is a stream of one message."""

        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            path = handler_call_details.method
            handler = server.handler(path)
            if handler is None:
                return None

            async def behaviour(_requests: object, context: Any) -> None:
                await server.serve(handler, path, context)

            return grpc.stream_stream_rpc_method_handler(behaviour)

    return Handlers()


def _metadata(pairs: Sequence[tuple[str, str | bytes]] | None) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in pairs or ()]


def _checked(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    # grpc would take a bad pair without a word and refuse every handshake.
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *pair)
    return pair


def _status(code: int) -> Any:
    import grpc

    return next((status for status in grpc.StatusCode if status.value[0] == code), grpc.StatusCode.UNKNOWN)
