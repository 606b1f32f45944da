"""`token-producer` with exact backends: what ends up in the request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from epp.api import InferenceRequest, NoParams, PluginContext
from epp.telemetry.metrics import Registry
from epp_plugins.parsers.openai import OpenAIParser
from epp_plugins.producers.token_producer import TokenProducer


def producer(context: PluginContext, **params: Any) -> TokenProducer:
    return TokenProducer(msgspec.convert(params, TokenProducer.Params), context)


def openai(context: PluginContext, path: str, **fields: Any) -> InferenceRequest:
    body = json.dumps(fields).encode()
    payload = OpenAIParser(NoParams(), context).parse(path, {}, body)
    return InferenceRequest("r", {}, path, body, payload, 0.0)


async def produced(made: TokenProducer, request: InferenceRequest) -> bool:
    """Whether it had to wait."""
    waiting = made.produce(request, made.context.table.all(0.0))
    if isinstance(waiting, Awaitable):
        await waiting
        return True
    return False


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for signals nobody
            await asyncio.sleep(0.002)


async def test_local(context: PluginContext, data: Path, registry: Registry) -> None:
    made = producer(context, local={"tokenizerPath": str(data), "budget": "20s"})
    assert made.timeout > 20
    assert not made.ready()
    await made.start()
    await until(made.ready)
    question = {"role": "user", "content": "def main(): return 1. " * 200}
    first, second = [openai(context, "/v1/chat/completions", model="m", messages=[question]) for _ in range(2)]
    assert await produced(made, first)
    assert not await produced(made, second)  # the same body again: at once
    assert first.prompt is not None
    assert second.prompt is not None
    assert not first.prompt.estimated
    assert first.prompt.data == second.prompt.data
    assert np.frombuffer(first.prompt.data[0], "<u4")[:3].tolist() == [1, 2072, 201]

    sent = openai(context, "/v1/completions", model="m", prompt=[5, 6])
    assert not await produced(made, sent)
    assert sent.prompt is not None
    assert np.frombuffer(sent.prompt.data[0], "<u4").tolist() == [5, 6]
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://i"}}]}
    media = openai(context, "/v1/chat/completions", model="m", messages=[image])
    assert not await produced(made, media)
    assert media.prompt is not None
    assert media.prompt.estimated
    labels = ("plugin_name", "plugin_type", "source")
    sources = registry.counter("tokenizer_prompts_total", "", labels)
    counts = {name: sources.labels("tokens", "token-producer", name).value for name in ("request", "cache", "estimate")}
    assert counts == {"request": 1, "cache": 1, "estimate": 1}
    assert made.dump_state()["warm"]
    await made.stop()


async def test_a_render_server_that_is_slow_then_gone(context: PluginContext) -> None:
    slow = asyncio.Event()

    async def render(request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("prompt") == "slow":
            await slow.wait()
        return web.json_response([{"token_ids": [7, 8]}])

    app = web.Application()
    app.router.add_post("/v1/completions/render", render)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    made = producer(context, modelName="m", vllm={"url": url, "budget": "300ms"})
    await made.start()
    await until(made.ready)
    quick = openai(context, "/v1/completions", model="x", prompt="quick")
    assert await produced(made, quick)
    assert quick.prompt is not None
    assert np.frombuffer(quick.prompt.data[0], "<u4").tolist() == [7, 8]

    held = openai(context, "/v1/completions", model="x", prompt="slow")
    began = asyncio.get_running_loop().time()
    assert await produced(made, held)
    assert asyncio.get_running_loop().time() - began < 10  # not the 5 s of the call, nor for ever
    assert held.prompt is not None
    assert held.prompt.estimated
    assert held.prompt.data == (b"slow",)
    slow.set()
    await until(lambda: made.dump_state()["pending"] == 0)
    again = openai(context, "/v1/completions", model="x", prompt="slow")
    assert not await produced(made, again)  # the late answer was kept
    assert again.prompt is not None
    assert not again.prompt.estimated

    await runner.cleanup()
    for n in range(12):
        request = openai(context, "/v1/completions", model="x", prompt=f"gone {n}")
        waited = await produced(made, request)
        assert request.prompt is not None
        assert request.prompt.estimated
    assert not waited  # left alone by now
    assert made.dump_state()["degraded"]
    await made.stop()


def test_which_backend_is_chosen(context: PluginContext) -> None:
    def renderer(**params: Any) -> str | None:
        chosen = msgspec.convert(params, TokenProducer.Params).renderer
        return None if chosen is None else str(chosen.base_url)

    assert renderer() is None
    assert renderer(estimate={}) is None
    assert renderer(modelName="m", estimate={}) is None
    assert renderer(modelName="m", local={"tokenizerPath": "/t"}) is None
    assert renderer(modelName="m") == "http://localhost:8000"
    assert renderer(modelName="m", backend="vllm", vllm={"url": "http://r:1"}) == "http://r:1"
    assert renderer(modelName="m", backend="estimate") is None
    assert renderer(modelName="m", vllm={"http": "http://r:1/"}) == "http://r:1"
    assert producer(context).ready()
    assert producer(context).dump_state() is None
