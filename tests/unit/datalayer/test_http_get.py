"""The kept connection, against real sockets."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from epp.api import ScrapeTarget
from epp.datalayer.http_get import CpuMeter, HttpGet, ReadBuffer, request_bytes
from epp.datalayer.http_response import HttpError, HttpResponse
from epp.datalayer.tcp_info import round_trip_time

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Asker:
    def __init__(self, port: int, host: str = "127.0.0.1", buffer: int = 4096) -> None:
        self.results: list[HttpResponse | Exception] = []
        self.meter = CpuMeter(time.thread_time)
        self.get = HttpGet(
            ScrapeTarget(host, port, "/metrics"),
            self.results.append,
            buffer=ReadBuffer(buffer),
            meter=self.meter,
            clock=time.monotonic,
            max_body=1 << 20,
        )

    async def ask(self, until: Until) -> HttpResponse | Exception:
        count = len(self.results)
        self.get.get()
        assert self.get.busy
        await until(lambda: len(self.results) > count)
        return self.results[-1]


async def test_one_connection_serves_many_requests(serve: Any, until: Until) -> None:
    server = await serve()
    server.page(b"m 1\n" * 20_000)
    asker = Asker(server.port)
    assert math.isnan(asker.get.connect_seconds)
    for _ in range(5):
        result = await asker.ask(until)
        assert isinstance(result, HttpResponse)
        assert result.body == b"m 1\n" * 20_000
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1:")
    assert asker.get.connect_seconds > 0
    assert asker.meter.total > 0
    sock = asker.get.socket()
    assert sock is not None
    assert round_trip_time(sock) is not None
    asker.get.close()
    assert asker.get.socket() is None
    with pytest.raises(RuntimeError):
        asker.get.get()


async def test_a_connection_that_the_server_closed_is_replaced(serve: Any, until: Until) -> None:
    server = await serve()
    asker = Asker(server.port)
    await asker.ask(until)
    server.drop_connections()
    await asyncio.sleep(0.05)  # the end of the connection arrives while nothing is asked
    assert isinstance(await asker.ask(until), HttpResponse)
    assert server.connections == 2
    asker.get.close()


async def test_a_close_that_crosses_the_request_is_retried(serve: Any, until: Until) -> None:
    server = await serve()
    server.close_after = 1
    asker = Asker(server.port)
    await asker.ask(until)
    assert isinstance(await asker.ask(until), HttpResponse)
    server.close_after = 10**9
    server.hold.clear()
    asker.get.cancel()
    server.hold.set()
    await asker.ask(until)
    server.hold.clear()
    asker.get.get()
    await until(lambda: len(server.requests) == 4)
    server.drop_connections()  # no byte of the answer came: asked once more on a new connection
    await until(lambda: len(server.requests) == 5)
    server.hold.set()
    await until(lambda: not asker.get.busy)
    assert all(isinstance(result, HttpResponse) for result in asker.results)
    asker.get.close()


async def test_a_fresh_connection_that_dies_is_an_error(serve: Any, until: Until) -> None:
    server = await serve()
    server.hold.clear()
    asker = Asker(server.port)
    asker.get.get()
    await until(lambda: len(server.requests) == 1)
    server.drop_connections()
    await until(lambda: bool(asker.results))
    assert isinstance(asker.results[0], Exception)
    assert not asker.get.busy
    asker.get.close()


async def test_an_answer_cut_short_is_an_error(serve: Any, until: Until) -> None:
    server = await serve()
    server.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nm 1"
    server.close_after = 1
    asker = Asker(server.port)
    assert "middle" in str(await asker.ask(until))
    asker.get.close()


async def test_an_answer_that_ends_with_the_connection(serve: Any, until: Until) -> None:
    server = await serve()
    server.answer = b"HTTP/1.0 200 OK\r\n\r\nm 1\n"
    server.close_after = 1
    asker = Asker(server.port)
    for _ in range(2):
        assert await asker.ask(until) == HttpResponse(200, b"m 1\n", False)
    asker.get.close()


def test_the_same_on_uvloop(until: Until) -> None:
    async def scenario() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b"x" * 100_000)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        asker = Asker(server.sockets[0].getsockname()[1])
        for _ in range(3):
            assert await asker.ask(until) == HttpResponse(200, b"x" * 100_000, True)
        asker.get.close()
        server.close()

    uvloop.run(scenario())


async def test_nobody_listens(serve: Any, until: Until) -> None:
    server = await serve()
    await server.stop()
    asker = Asker(server.port)
    assert isinstance(await asker.ask(until), OSError)
    assert isinstance(await Asker(80, "no-such-host.invalid").ask(until), OSError)
    asker.get.close()


async def test_rubbish_closes_the_connection(serve: Any, until: Until) -> None:
    server = await serve()
    server.answer = b"RUBBISH\r\n\r\n"
    asker = Asker(server.port)
    assert isinstance(await asker.ask(until), HttpError)
    server.page(b"ok")
    assert isinstance(await asker.ask(until), HttpResponse)
    assert server.connections == 2
    asker.get.close()


async def test_unasked_bytes_close_the_connection(serve: Any, until: Until) -> None:
    server = await serve()
    asker = Asker(server.port)
    await asker.ask(until)
    server.writers[0].write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nm 9\n")
    await until(lambda: asker.get.socket() is None)
    assert (await asker.ask(until)) == HttpResponse(200, b"m 1\n", True)
    assert len(asker.results) == 2
    asker.get.close()


async def test_cancel_drops_the_answer(serve: Any, until: Until) -> None:
    server = await serve()
    server.hold.clear()
    asker = Asker(server.port)
    asker.get.get()
    connecting = asker.get.cancel()  # while it connects
    assert connecting is not None
    await asyncio.gather(connecting, return_exceptions=True)
    asker.get.get()
    with pytest.raises(RuntimeError):
        asker.get.get()
    await until(lambda: len(server.requests) == 1)
    asker.get.cancel()  # while it waits
    server.hold.set()
    assert isinstance(await asker.ask(until), HttpResponse)
    assert len(asker.results) == 1
    asker.get.close()


@pytest.mark.parametrize("path", ["metrics", "/a b", "/a\r\nx: y", "/ä", "/\x7f"])
def test_paths_that_cannot_be_asked_for(path: str) -> None:
    with pytest.raises(ValueError, match="cannot ask"):
        request_bytes(ScrapeTarget("10.0.0.1", 80, path))


def test_ipv6_hosts_have_brackets() -> None:
    assert b"host: [fd00::1]:80\r\n" in request_bytes(ScrapeTarget("fd00::1", 80, "/m?name[]=a"))


def test_the_meter_counts_nested_sections_once() -> None:
    now = [0.0]
    meter = CpuMeter(lambda: now[0])
    meter.enter()
    now[0] = 1.0
    meter.enter()
    now[0] = 3.0
    meter.leave()
    now[0] = 4.0
    meter.leave()
    now[0] = 9.0
    assert meter.total == 4.0
