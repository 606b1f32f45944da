"""Whatever a render server does, a request waits for the budget at most, and goes on with an estimate."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from epp.api import InferenceRequest, NoParams, PluginContext
from epp_plugins.parsers.openai import OpenAIParser
from epp_plugins.producers.token_producer import TokenProducer

AT_ONCE = 300
BUDGET = 0.1  # the default
SLACK = 2.0  # what a busy machine may add; the servers below hold on for ever

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Takes the request and says nothing."""
    await asyncio.Event().wait()


async def trickling(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte now and then: never silent for long, and never done."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\ncontent-type: application/json\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def slow_head(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, before the header is over."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A body that never ends, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"[" * 0x10000 + b"\r\n")
        await writer.drain()


async def resetting(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hangs up without a word."""
    writer.transport.abort()


@asynccontextmanager
async def renderer(behave: Answer) -> AsyncIterator[str]:
    """Answers the warm-up, and everything else as `behave` does."""
    open_ones: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    body = await reader.readexactly(length)
                    if b"warm-up" not in body:
                        await behave(reader, writer)
                        return
                    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n[{"token_ids": [1]}]\n')
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


@asynccontextmanager
async def full() -> AsyncIterator[str]:
    """A listener whose queue is full: connections are neither taken nor refused."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for each in waiting:
                each.close()


async def waits(made: TokenProducer, number: int) -> float:
    """Seconds that one request waited; it must have an estimate then."""
    body = json.dumps({"model": "x", "prompt": f"prompt {number}"}).encode()
    payload = OpenAIParser(NoParams(), made.context).parse("/v1/completions", {}, body)
    request = InferenceRequest(str(number), {}, "/v1/completions", body, payload, 0.0)
    began = time.monotonic()
    waiting = made.produce(request, made.context.table.all(0.0))
    if isinstance(waiting, Awaitable):
        await waiting
    took = time.monotonic() - began
    assert request.prompt is not None
    assert request.prompt.estimated
    assert request.prompt.data[0].startswith(f"prompt {number}".encode())
    return took


async def through_a_hostile_time(made: TokenProducer) -> None:
    """Many requests at once, then one after the other: soon they do not wait at all."""
    took = await asyncio.gather(*(waits(made, number) for number in range(AT_ONCE)))
    assert max(took) < BUDGET + SLACK
    assert made.dump_state()["pending"] <= 64
    async with asyncio.timeout(30):
        while not made.dump_state()["degraded"]:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    began = time.monotonic()
    for number in range(100):
        await waits(made, 1000 + number)
    assert time.monotonic() - began < SLACK  # left alone: 100 times the budget would be 10 s


def producer(context: PluginContext, url: str) -> TokenProducer:
    return TokenProducer(msgspec.convert({"modelName": "m", "vllm": {"url": url}}, TokenProducer.Params), context)


@pytest.mark.parametrize("behave", [silent, trickling, slow_head, endless, resetting])
async def test_a_server_that_misbehaves(context: PluginContext, behave: Answer) -> None:
    async with renderer(behave) as url:
        made = producer(context, url)
        await made.start()
        async with asyncio.timeout(30):
            while not made.ready():  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
        assert not made.dump_state()["degraded"]
        await through_a_hostile_time(made)
        await made.stop()


@pytest.mark.parametrize("obstacle", ["connection", "name"])
async def test_a_server_that_cannot_be_reached(
    context: PluginContext, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the connection nor the look-up of its name is beside the budget."""
    asked: list[Any] = []

    def resolve(*arguments: Any, **_named: Any) -> Any:
        asked.append(arguments)
        time.sleep(3)
        raise socket.gaierror("no answer")

    async with AsyncExitStack() as stack:
        if obstacle == "name":
            monkeypatch.setattr(socket, "getaddrinfo", resolve)
            url = "http://renderer.invalid:8000"
        else:
            url = await stack.enter_async_context(full())
        made = producer(context, url)
        await made.start()
        assert made._exact is not None
        made._exact.warm = made._exact.settled = True  # as if it had worked before
        await through_a_hostile_time(made)
        assert bool(asked) == (obstacle == "name")
        await made.stop()
