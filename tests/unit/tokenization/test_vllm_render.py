"""The render backend against a real HTTP server that answers as vLLM does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from epp.api import MediaFeature
from epp_plugins.tokenization import vllm_render
from epp_plugins.tokenization.params import VLLMParams
from epp_plugins.tokenization.tokenized import Reason, TokenizationError
from epp_plugins.tokenization.vllm_render import VLLMRenderBackend

Answer = Callable[[web.Request, dict[str, Any]], Any]


class Renderer:
    """Keeps what it was asked; `answer` may be replaced."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.peers: set[Any] = set()
        self.url = ""
        self.answer: Answer = self.ids

    @staticmethod
    def ids(request: web.Request, body: dict[str, Any]) -> Any:
        one = {"request_id": "r", "token_ids": [1, 2, 3], "features": None, "sampling_params": {}}
        if not request.path.startswith("/v1/completions"):
            return one
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        return [{**one, "token_ids": list(range(len(prompt)))} for prompt in prompts]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append((request.path, body))
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        made = self.answer(request, body)
        if asyncio.iscoroutine(made):
            made = await made
        return made if isinstance(made, web.StreamResponse) else web.json_response(made)


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    app = web.Application()
    app.router.add_post("/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield made
    await runner.cleanup()


@pytest.fixture
async def backend(renderer: Renderer) -> AsyncIterator[VLLMRenderBackend]:
    made = VLLMRenderBackend(VLLMParams(url=renderer.url, timeout="500ms", mm_timeout="5s"), "the-model")
    await made.start()
    yield made
    await made.stop()


def ids(data: bytes) -> list[int]:
    made: list[int] = np.frombuffer(data, "<u4").tolist()
    return made


async def test_bodies_go_there_with_the_configured_model(renderer: Renderer, backend: VLLMRenderBackend) -> None:
    for body in (b'{"prompt": ["ab", "c"], "model": "x", "big": 12345678901234567890}', b'{"prompt": ["ab", "c"]}'):
        made = await backend.tokenize("completions", body, None)
        assert [ids(data) for data in made.data] == [[0, 1], [0]]
    made = await backend.tokenize("chat completions", b'{"model": "x", "messages": []}', None)
    assert ids(made.data[0]) == [1, 2, 3]
    assert renderer.asked == [
        ("/v1/completions/render", {"prompt": ["ab", "c"], "model": "the-model", "big": 12345678901234567890}),
        ("/v1/completions/render", {"prompt": ["ab", "c"], "model": "the-model"}),
        ("/v1/chat/completions/render", {"model": "the-model", "messages": []}),
    ]
    assert len(renderer.peers) == 1  # one connection for all


async def test_messages_and_responses_are_sent_as_chat(renderer: Renderer, backend: VLLMRenderBackend) -> None:
    await backend.tokenize("messages", b'{"system": "s", "messages": [{"role": "user", "content": "hi"}]}', None)
    await backend.tokenize("responses", b'{"instructions": "s", "input": "hi", "reasoning": {"effort": "low"}}', None)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    assert renderer.asked == [
        ("/v1/chat/completions/render", {"model": "the-model", "messages": messages}),
        ("/v1/chat/completions/render", {"model": "the-model", "messages": messages, "reasoning_effort": "low"}),
    ]
    assert not backend.handles("embeddings")
    assert backend.inline("messages", b"{}") is None


async def test_media_come_with_their_places(renderer: Renderer, backend: VLLMRenderBackend) -> None:
    features = {
        "mm_hashes": {"image": ["late", "out", None], "audio": ["early"]},
        "mm_placeholders": {
            "image": [{"offset": 4, "length": 2}, {"offset": 5, "length": 9}, {"offset": 0, "length": 1}],
            "audio": [{"offset": 1, "length": 2}],
        },
    }
    renderer.answer = lambda *_: {"token_ids": [0] * 6, "features": features}
    made = await backend.tokenize("chat completions", b'{"messages": [{"content": [{}]}]}', None)
    assert made.features == (MediaFeature("audio", "early", 1, 2), MediaFeature("image", "late", 4, 2))
    assert made.size > 24


async def test_images_may_take_longer(renderer: Renderer, backend: VLLMRenderBackend) -> None:
    async def slow(*_: Any) -> Any:
        await asyncio.sleep(0.8)
        return {"token_ids": [7]}

    renderer.answer = lambda *_: slow()
    made = await backend.tokenize("chat completions", b'{"messages": [{"content" : [{}]}]}', None)
    assert ids(made.data[0]) == [7]
    with pytest.raises(TokenizationError, match=r"no answer within 0\.5 s") as caught:
        await backend.tokenize("chat completions", b'{"messages": [{"content": "text"}]}', None)
    assert caught.value.reason is Reason.FAILED


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (lambda *_: web.json_response({"message": "too long"}, status=400), Reason.REFUSED, "status 400.*too long"),
        (lambda *_: web.Response(status=403), Reason.FAILED, "--enable-scale-out"),
        (lambda *_: web.Response(status=500, text="x" * 9999), Reason.FAILED, "status 500: x{300}$"),
        (lambda *_: web.Response(status=302, headers={"Location": "/"}), Reason.FAILED, "status 302"),
        (lambda *_: web.Response(text="<html>"), Reason.FAILED, "cannot be read"),
        (lambda *_: {"token_ids": [-1]}, Reason.FAILED, "cannot be read"),
        (lambda *_: web.Response(body=b"[" + b" " * 5000), Reason.FAILED, "more than 4096 bytes"),
    ],
)
async def test_answers_that_are_none(
    renderer: Renderer,
    backend: VLLMRenderBackend,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    reason: Reason,
    message: str,
) -> None:
    if "4096" in message:
        monkeypatch.setattr(vllm_render, "MAX_ANSWER", 4096)
    elif "x{" in message:
        monkeypatch.setattr(vllm_render, "MAX_ANSWER", 10_000)
    renderer.answer = answer
    with pytest.raises(TokenizationError, match=message) as caught:
        await backend.tokenize("chat completions", b'{"messages": []}', None)
    assert caught.value.reason is reason


async def test_an_empty_list_and_a_long_answer(
    renderer: Renderer, backend: VLLMRenderBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer.answer = lambda *_: []
    with pytest.raises(TokenizationError, match="is empty"):
        await backend.tokenize("completions", b'{"prompt": "a"}', None)
    monkeypatch.setattr(vllm_render, "_THREADED", 10)
    renderer.answer = lambda *_: [{"token_ids": list(range(1000))}]
    made = await backend.tokenize("completions", b'{"prompt": "a"}', None)
    assert ids(made.data[0]) == list(range(1000))


async def test_nobody_there(renderer: Renderer, backend: VLLMRenderBackend) -> None:
    gone = VLLMRenderBackend(VLLMParams(http="http://127.0.0.1:9"), "m")
    with pytest.raises(TokenizationError, match="closed"):
        await gone.trial()
    await gone.start()
    with pytest.raises(TokenizationError, match=r"http://127\.0\.0\.1:9/v1/completions/render"):
        await gone.trial()
    await gone.stop()
    await backend.trial()
    assert renderer.asked == [("/v1/completions/render", {"model": "the-model", "prompt": "warm-up"})]


async def test_the_step_is_traced(renderer: Renderer, backend: VLLMRenderBackend) -> None:
    class Span:
        def __init__(self) -> None:
            self.said: list[str] = []

        def child(self, name: str) -> Span:
            self.said.append(name)
            return self

        def fail(self, error: BaseException) -> None:
            self.said.append("failed")

        def end(self) -> None:
            self.said.append("end")

    span = Span()
    await backend.tokenize("completions", b'{"prompt": "a"}', span)
    renderer.answer = lambda *_: web.Response(status=500)
    with pytest.raises(TokenizationError):
        await backend.tokenize("completions", b'{"prompt": "a"}', span)
    assert span.said == [
        *("tokenize_render /v1/completions/render", "end"),
        *("tokenize_render /v1/completions/render", "failed", "end"),
    ]
