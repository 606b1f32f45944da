"""Independent clients over real sockets: grpcio (asyncio and threads), and the h2 library; with TLS and without."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import uvloop

from epp.transport.call import Call, CloseReason
from epp.transport.limits import Limits
from epp.transport.server import Server
from epp.transport.tls import ServerTlsFactory, server_context

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Echo:
    """Sends every message back and ends when the client does."""

    def __init__(self, call: Call, reasons: list[CloseReason]) -> None:
        self.call, self.reasons = call, reasons

    def receive(self, message: bytes) -> None:
        self.call.send(message)

    def half_closed(self) -> None:
        self.call.finish()

    def closed(self, reason: CloseReason) -> None:
        self.reasons.append(reason)


class Ticker:
    """Replies later, from the loop: ten messages for one."""

    def __init__(self, call: Call) -> None:
        self.call, self.left = call, 10

    def receive(self, message: bytes) -> None:
        self.tick(message)

    def tick(self, message: bytes) -> None:
        self.call.send(message)
        self.left -= 1
        if self.left:
            asyncio.get_running_loop().call_soon(self.tick, message)
        else:
            self.call.finish(9, "done ticking")

    def half_closed(self) -> None:
        pass

    def closed(self, reason: CloseReason) -> None:
        pass


class Running:
    """A server with an echo, and how its calls ended."""

    def __init__(self, server: Server, port: int, reasons: list[CloseReason]) -> None:
        self.server, self.port, self.reasons = server, port, reasons

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(limits: Limits | None = None, *, tls: bool = False) -> AsyncIterator[Running]:
    reasons: list[CloseReason] = []
    factory = ServerTlsFactory(lambda: server_context(None, now=datetime.now(UTC))) if tls else None
    server = Server({"/t/Echo": lambda call: Echo(call, reasons), "/t/Tick": Ticker}, limits=limits, tls=factory)
    port = await server.start("127.0.0.1", 0)
    try:
        yield Running(server, port, reasons)
    finally:
        await server.close()
        assert (server.stats.connections, server.stats.streams, server.stats.buffered) == (0, 0, 0)


@asynccontextmanager
async def dialled(running: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address, options=OPTIONS) as channel:
        yield channel


async def eventually(condition: Callable[[], bool]) -> None:
    """Yield to the loop until it holds; the test's own timeout ends what never does."""
    while not condition():  # noqa: ASYNC110 - the server has no event for each of these
        await asyncio.sleep(0.01)


async def test_grpc_aio_streams_and_unary() -> None:
    async with serving() as running, dialled(running) as channel:
        unary = channel.unary_unary("/t/Echo")
        assert await unary(b"one") == b"one"
        assert await unary(b"") == b""
        big = bytes(range(256)) * 8192  # 2 MiB: many frames, and the client's windows many times over
        assert await unary(big) == big
        assert await unary(big, compression=grpc.Compression.Gzip) == big
        call = channel.stream_stream("/t/Echo")(_messages(b"m%d" % i * i for i in range(200)))
        assert [message async for message in call] == [b"m%d" % i * i for i in range(200)]
        assert await call.code() is grpc.StatusCode.OK
        await eventually(lambda: len(running.reasons) == 5)
        assert set(running.reasons) == {CloseReason.FINISHED}


async def _messages(messages: Any) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def test_grpc_aio_statuses() -> None:
    async with serving() as running, dialled(running) as channel:
        call = channel.stream_stream("/t/Tick")(_messages([b"tick"]))
        ticks = [await call.read() for _ in range(10)]
        assert ticks == [b"tick"] * 10
        assert (await call.code(), await call.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "done ticking")
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await channel.unary_unary("/t/Nobody")(b"")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_cancel_deadline_and_disconnect() -> None:
    async with serving() as running:
        async with dialled(running) as channel:
            call = channel.stream_stream("/t/Echo")()
            await call.write(b"hello")
            assert await call.read() == b"hello"
            call.cancel()
            await eventually(lambda: running.reasons == [CloseReason.RESET])
            short = channel.stream_stream("/t/Echo")(timeout=0.05)
            await short.write(b"hello")
            assert await short.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: len(running.reasons) == 2)
            assert running.reasons[1] in (CloseReason.RESET, CloseReason.ABORTED)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        client = h2.connection.H2Connection()
        client.initiate_connection()
        client.send_headers(1, _request("/t/Echo"))
        writer.write(client.data_to_send())
        await eventually(lambda: running.server.stats.streams == 1)
        writer.transport.abort()
        await eventually(lambda: len(running.reasons) == 3)
        assert running.reasons[2] is CloseReason.DISCONNECTED
        del reader


async def test_many_streams_at_once() -> None:
    """Threads of the sync client and hundreds of streams of the asyncio one, together on the same server."""
    async with serving() as running, dialled(running) as channel:
        stub = channel.stream_stream("/t/Echo")

        async def one(index: int) -> None:
            call = stub(_messages([b"%d" % index, b"x" * (index * 97 % 70_000)]))
            assert [len(m) async for m in call] == [len(b"%d" % index), index * 97 % 70_000]

        def threaded() -> list[bytes]:
            with grpc.insecure_channel(running.address, options=OPTIONS) as sync:
                return list(sync.stream_stream("/t/Echo")(iter([b"s" * 100_000] * 5)))

        *_, first, second = await asyncio.gather(
            *(one(index) for index in range(300)), asyncio.to_thread(threaded), asyncio.to_thread(threaded)
        )
        assert first == second == [b"s" * 100_000] * 5


async def test_grpc_aio_over_tls() -> None:
    async with serving(tls=True) as running:
        certificate = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", running.port))
        credentials = grpc.ssl_channel_credentials(certificate.encode())
        options = [*OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(running.address, credentials, options=options) as channel:
            big = bytes(1_000_000)
            assert await channel.unary_unary("/t/Echo")(big) == big
            call = channel.stream_stream("/t/Echo")(_messages([b"a", b"b" * 100_000]))
            assert [len(message) async for message in call] == [1, 100_000]


def _request(path: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"),
        ("content-type", "application/grpc"), ("te", "trailers"),
    ]  # fmt: skip


class H2Client:
    """The h2 library over a socket: it raises on every breach of the protocol by the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.data: dict[int, bytearray] = {}
        self.statuses: dict[int, str] = {}
        self.over = False

    async def pump(self, *, acknowledge: bool = True) -> list[Any]:
        """Write what h2 has to say, and read once."""
        self.writer.write(self.h2.data_to_send())
        received = await self.reader.read(1 << 16)
        if not received:
            self.over = True
            return []
        events = self.h2.receive_data(received)
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
                if acknowledge and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.statuses[event.stream_id] = dict(event.headers)["grpc-status"]
        self.writer.write(self.h2.data_to_send())
        return events


async def _h2(port: int) -> H2Client:
    return H2Client(*await asyncio.open_connection("127.0.0.1", port))


async def test_h2_interleaved_uploads_with_windows() -> None:
    async with serving() as running:
        client = await _h2(running.port)
        payloads = {stream: bytes([stream % 251]) * (50_000 * stream) for stream in range(1, 17, 2)}
        left = {stream: struct.pack("!BI", 0, len(p)) + p for stream, p in payloads.items()}
        for stream in payloads:
            client.h2.send_headers(stream, _request("/t/Echo"))
        await client.pump()
        while len(client.statuses) < len(payloads):
            blocked = True
            for stream, rest in list(left.items()):
                size = min(len(rest), client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size)
                if size:
                    blocked = False
                    client.h2.send_data(stream, rest[:size], end_stream=size == len(rest))
                    left[stream] = rest[size:]
                if not left[stream]:
                    del left[stream]
            if blocked:
                await client.pump()
            else:
                client.writer.write(client.h2.data_to_send())
                await client.writer.drain()
        for stream, payload in payloads.items():
            assert bytes(client.data[stream][5:]) == payload
        assert set(client.statuses.values()) == {"0"}
        client.writer.close()


async def test_five_thousand_streams_on_one_connection() -> None:
    async with serving() as running:
        client = await _h2(running.port)
        streams = range(1, 10_001, 2)
        await client.pump()
        for stream in streams:
            client.h2.send_headers(stream, _request("/t/Echo"))
            client.h2.send_data(stream, b"\0\0\0\0\3%03d" % (stream % 1000))
        while len(client.data) < 5000:
            await client.pump()
        assert running.server.stats.streams == 5000
        for stream in streams:
            client.h2.end_stream(stream)
        while len(client.statuses) < 5000:
            await client.pump()
        assert all(client.data[stream] == b"\0\0\0\0\3%03d" % (stream % 1000) for stream in streams)
        client.writer.close()


async def test_a_reader_that_stops_cannot_fill_our_memory() -> None:
    """The client sends for ever and takes nothing: what we keep stays bounded, and it goes when the client goes."""
    limits = Limits(
        stream_window=65_535, connection_window=65_535 * 4, unsent_stream=100_000, unsent_connection=200_000
    )
    async with serving(limits) as running:
        client = await _h2(running.port)
        for stream in (1, 3, 5):
            client.h2.send_headers(stream, _request("/t/Echo"))
        await client.pump()
        sent = 0
        message = struct.pack("!BI", 0, 10_000) + bytes(10_000)
        while True:
            room = [s for s in (1, 3, 5) if client.h2.local_flow_control_window(s) >= len(message)]
            if not room:
                try:
                    await asyncio.wait_for(client.pump(acknowledge=False), 0.3)
                except TimeoutError:
                    break
                continue
            client.h2.send_data(room[0], message)
            sent += len(message)
        windows = 65_535 * 4  # what it may send before it must take
        assert running.server.stats.buffered <= 200_000 + windows
        assert sent <= 65_535 + 200_000 + 2 * windows
        assert running.server.stats.streams == 3
        client.writer.transport.abort()
        await eventually(lambda: running.server.stats.connections == 0)
        assert running.server.stats.buffered == 0


async def test_a_socket_nobody_reads_is_given_up() -> None:
    async with serving(Limits(stalled_seconds=0.2)) as running:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, ("127.0.0.1", running.port))
        client = h2.connection.H2Connection()
        client.initiate_connection()
        client.increment_flow_control_window(2**31 - 65_536)
        client.update_settings({4: 2**31 - 1})
        client.send_headers(1, _request("/t/Echo"))
        await loop.sock_sendall(raw, client.data_to_send())
        frame = struct.pack("!IBIBI", 16_384 << 8, 0, 1, 0, 16_379) + bytes(16_379)
        with contextlib.suppress(OSError):  # reset or broken pipe
            while True:
                await loop.sock_sendall(raw, frame * 4)
        await eventually(lambda: running.reasons == [CloseReason.DISCONNECTED])
        assert running.server.stats.limits_hit["stalled_seconds"] == 1
        raw.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_peer_that_says_nothing_is_given_up(tls: bool) -> None:
    async with serving(Limits(handshake_seconds=0.05), tls=tls) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        if not tls:
            writer.write(b"PRI * HTTP/2.0\r\n")
        with contextlib.suppress(ConnectionResetError):  # an orderly end would do as well
            while await reader.read(1000):
                pass
        assert running.server.stats.limits_hit == {"handshake_seconds": 1}
        writer.close()


async def test_http_1_gets_an_answer_it_understands() -> None:
    async with serving() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        assert b"HTTP/1.1 400 " in answer
        head, body = answer[answer.index(b"HTTP/1.1") :].split(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head
        writer.close()
        assert running.server.stats.errors_by_code == {"HTTP_1_1": 1}


async def test_tls_on_a_plaintext_port_is_refused_with_a_hint(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running:
        with pytest.raises(OSError):  # noqa: PT011 - ssl.SSLError, or reset
            await asyncio.open_connection("127.0.0.1", running.port, ssl=ssl._create_unverified_context())
        assert "speaks TLS" in caplog.text


async def test_too_many_connections_are_closed() -> None:
    async with serving(Limits(connections=1)) as running:
        first = await _h2(running.port)
        await first.pump()
        reader, _ = await asyncio.open_connection("127.0.0.1", running.port)
        with contextlib.suppress(ConnectionResetError):  # an orderly end would do as well
            while await reader.read(1000):
                pass
        assert running.server.stats.limits_hit == {"connections": 1}
        first.writer.close()


async def test_drain_serves_what_is_open_and_what_was_under_way() -> None:
    async with serving() as running:
        client = await _h2(running.port)
        client.h2.send_headers(1, _request("/t/Echo"))
        await client.pump()
        await eventually(lambda: running.server.stats.streams == 1)
        draining = asyncio.create_task(running.server.drain(30))
        goaways: list[int] = []
        while len(goaways) < 2:
            # h2 closes itself on GOAWAY, so that the rest is read by hand
            for kind, payload in _frames(await client.reader.read(1 << 16)):
                if kind == 7:
                    goaways.append(struct.unpack("!I", payload[:4])[0])
                elif kind == 6 and payload == b"draining":
                    # grpcio answers like this: first the PING, then HEADERS of what it opened before it read GOAWAY
                    client.h2.send_headers(3, _request("/t/Echo"))
                    answer = struct.pack("!IBI", 8 << 8 | 6, 1, 0) + payload
                    client.writer.write(answer + client.h2.data_to_send())
        assert goaways == [2**31 - 1, 3]
        assert not draining.done()
        for stream in (1, 3):
            client.writer.write(struct.pack("!IBIBI", 6 << 8, 1, stream, 0, 1) + b"x")
        rest = b""
        while chunk := await client.reader.read(1 << 16):
            rest += chunk
        kinds = [kind for kind, _ in _frames(rest)]
        assert kinds.count(0) == 2  # both echoes
        assert await draining is True
        assert running.reasons == [CloseReason.FINISHED] * 2
        client.writer.close()


async def test_a_connection_made_while_draining_is_served_before_it_is_asked_to_go() -> None:
    async with serving() as running:
        first = await _h2(running.port)
        await first.pump()
        draining = asyncio.create_task(running.server.drain(30))
        await eventually(lambda: running.server.draining)
        second = await _h2(running.port)
        second.h2.send_headers(1, _request("/t/Echo"))
        second.h2.send_data(1, b"\0\0\0\0\1x", end_stream=True)
        while 1 not in second.statuses:
            assert not any(isinstance(event, h2.events.ConnectionTerminated) for event in await second.pump())
        kinds: list[int] = []
        while 7 not in kinds:  # h2 closes itself on GOAWAY, so that it is read by hand
            kinds += [kind for kind, _ in _frames(await second.reader.read(1 << 16))]
        first.writer.close()
        second.writer.close()
        assert await draining is True


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= 9:
        word = struct.unpack_from("!I", data)[0]
        found.append((word & 255, data[9 : 9 + (word >> 8)]))
        data = data[9 + (word >> 8) :]
    return found


async def test_drain_under_load_fails_no_call() -> None:
    """Clients go on calling while the server drains; until it is closed every call succeeds."""
    async with serving() as running:
        stop = False
        done = [0] * 4

        async def caller(index: int) -> None:
            # Channels with the same options would share one connection.
            options = [*OPTIONS, ("grpc.channel_id", index)]
            async with grpc.aio.insecure_channel(running.address, options=options) as channel:
                stub = channel.stream_stream("/t/Echo")
                while not stop:
                    call = stub(_messages([b"a" * 1000, b"b"]))
                    assert [len(m) async for m in call] == [1000, 1]
                    done[index] += 1

        async with asyncio.TaskGroup() as callers:  # a call that fails ends the test
            for index in range(4):
                callers.create_task(caller(index))
            await eventually(lambda: min(done) > 5)
            drain = callers.create_task(running.server.drain(60))
            first = running.server.stats.connections_total
            await eventually(lambda: running.server.stats.connections_total >= first + 4)  # GOAWAY reached them all
            before = list(done)
            await eventually(lambda: all(now > then + 5 for now, then in zip(done, before, strict=True)))
            stop = True
        assert drain.result() is True


async def test_drain_ends_after_its_grace_and_close_ends_open_calls() -> None:
    async with serving() as running, dialled(running) as channel:
        call = channel.stream_stream("/t/Echo")()
        await call.write(b"x")
        assert await call.read() == b"x"
        assert await running.server.drain(0.01) is False
        await running.server.close()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert running.reasons == [CloseReason.ABORTED]


async def test_a_socket_given_by_the_caller() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        server = Server({})
        assert await server.start("", 0, sock=listening) == port
        client = await _h2(port)
        client.h2.send_headers(1, _request("/t/Echo"), end_stream=True)
        while not (events := [e for e in await client.pump() if isinstance(e, h2.events.ResponseReceived)]):
            pass
        assert dict(events[0].headers)["grpc-status"] == "12"
        client.writer.close()
        await server.close()


@pytest.mark.parametrize("tls", [False, True])
def test_uvloop(tls: bool) -> None:
    """The event loop of production: its transports are not asyncio's."""

    async def main() -> None:
        async with serving(tls=tls) as running:
            options = [*OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
            if tls:
                certificate = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", running.port))
                credentials = grpc.ssl_channel_credentials(certificate.encode())
                channel = grpc.secure_channel(running.address, credentials, options=options)
            else:
                channel = grpc.insecure_channel(running.address, options=options)

            def calls() -> tuple[bytes, list[bytes]]:
                with channel:
                    unary = channel.unary_unary("/t/Echo")(bytes(3_000_000))
                    return unary, list(channel.stream_stream("/t/Echo")(iter([b"a", b"b" * 100_000])))

            unary, streamed = await asyncio.to_thread(calls)
            assert unary == bytes(3_000_000)
            assert streamed == [b"a", b"b" * 100_000]
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.close()
            assert await running.server.drain(5) is True
            del reader

    uvloop.run(main())


def test_a_server_that_never_started() -> None:
    with pytest.raises(RuntimeError, match="not been started"):
        _ = Server({}).loop
