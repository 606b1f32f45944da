"""Messages, responses, embeddings and generate answer as vLLM does; HTTPS."""

from __future__ import annotations

import base64
import json
import ssl
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from epp.transport.certificates import self_signed
from epp_simulator.fleet import Fleet
from epp_simulator.options import SimOptions

HELLO = [{"role": "user", "content": "hello " * 20}]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def server() -> AsyncIterator[str]:
    async with Fleet(SimOptions(port=0, model="tiny", enable_kvcache=True, block_size=8)) as fleet:
        ((host, port),) = fleet.endpoints
        yield f"http://{host}:{port}"


async def post(session: aiohttp.ClientSession, url: str, body: Any, status: int = 200) -> Any:
    async with session.post(url, json=body) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


async def events(session: aiohttp.ClientSession, url: str, body: Any) -> list[tuple[str, Any]]:
    """(name, data) of each server-sent event."""
    async with session.post(url, json=body | {"stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        read: list[tuple[str, Any]] = []
        for event in (await answer.text()).split("\n\n")[:-1]:
            lines = dict(line.split(": ", 1) for line in event.split("\n"))
            read.append((lines.get("event", ""), lines["data"]))
    return [(name, data if data == "[DONE]" else json.loads(data)) for name, data in read]


async def test_messages(session: aiohttp.ClientSession, server: str) -> None:
    body = {"model": "tiny", "system": "be kind", "messages": HELLO, "max_tokens": 4}
    counted = await post(session, f"{server}/v1/messages/count_tokens", body)
    tokens = counted["input_tokens"]
    assert counted == {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
    whole = await post(session, f"{server}/v1/messages", body)
    assert whole["type"] == "message"
    assert whole["content"][0]["type"] == "text"
    assert whole["stop_reason"] == "max_tokens"
    assert whole["usage"] == {
        "input_tokens": tokens,
        "output_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    streamed = await events(session, f"{server}/v1/messages", body)
    names = ["message_start", "content_block_start", *["content_block_delta"] * 4]
    names += ["content_block_stop", "message_delta", "message_stop"]
    assert [name for name, _ in streamed] == [data["type"] for _, data in streamed] == names
    assert streamed[0][1]["message"]["usage"] == {"input_tokens": tokens, "output_tokens": 0}
    assert streamed[-2][1]["usage"]["cache_read_input_tokens"] == (tokens - 1) // 8 * 8
    assert streamed[-2][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    rendered = await post(session, f"{server}/v1/messages/render", body)
    assert len(rendered["token_ids"]) == tokens


async def test_responses(session: aiohttp.ClientSession, server: str) -> None:
    body = {"model": "tiny", "input": "hello " * 20, "instructions": "be kind", "max_output_tokens": 4}
    whole = await post(session, f"{server}/v1/responses", body)
    assert whole["object"] == "response"
    assert whole["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + 4
    assert usage["input_tokens_details"]["cached_tokens"] == 0
    streamed = await events(session, f"{server}/v1/responses", body)
    names = ["created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * 4]
    names += ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [name for name, _ in streamed] == [f"response.{name}" for name in names]
    assert [data["sequence_number"] for _, data in streamed] == list(range(len(names)))
    text = "".join(data["delta"] for name, data in streamed if name.endswith("delta"))
    done = streamed[-1][1]["response"]
    assert done["output"][0]["content"][0]["text"] == text
    assert done["usage"]["input_tokens_details"]["cached_tokens"] == (usage["input_tokens"] - 1) // 8 * 8
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "arguments": "{}"},
        {"type": "function_call_output", "output": "7"},
    ]
    rendered = await post(session, f"{server}/v1/responses/render", {"model": "tiny", "input": items})
    assert len(rendered["token_ids"]) > 10


async def test_generate_and_token_ids(session: aiohttp.ClientSession, server: str) -> None:
    body = {"model": "tiny", "token_ids": list(range(20)), "sampling_params": {"max_tokens": 3}}
    whole = await post(session, f"{server}/inference/v1/generate", body)
    assert len(whole["choices"][0]["token_ids"]) == 3
    assert whole["choices"][0]["finish_reason"] == "length"
    streaming = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    streamed = await events(session, f"{server}/inference/v1/generate", body | streaming)
    assert streamed[-1][1] == "[DONE]"
    assert [event["usage"]["completion_tokens"] for _, event in streamed[:-1]] == [1, 2, 3, 3]
    assert [len(choice["token_ids"]) for _, event in streamed[:-1] for choice in event["choices"]] == [1, 1, 1]

    for path, prompt in (("completions", {"prompt": "a b c"}), ("chat/completions", {"messages": HELLO})):
        asked = {"model": "tiny", "max_tokens": 3, "return_token_ids": True, **prompt}
        whole = await post(session, f"{server}/v1/{path}", asked)
        ids = whole.get("prompt_token_ids") or whole["choices"][0]["prompt_token_ids"]
        rendered = await post(session, f"{server}/v1/{path}/render", asked)
        assert (rendered if "chat" in path else rendered[0])["token_ids"] == ids
        streamed = await events(session, f"{server}/v1/{path}", asked | streaming)
        first, *_, last = (event for _, event in streamed[:-2])
        assert (first.get("prompt_token_ids") or first["choices"][0].get("prompt_token_ids")) == ids
        assert len(last["choices"][0]["token_ids"]) == 1
        assert last["usage"]["completion_tokens"] == 3


async def test_embeddings(session: aiohttp.ClientSession, server: str) -> None:
    url = f"{server}/v1/embeddings"
    body = {"model": "tiny", "input": ["hello there", "good bye"]}
    answer = await post(session, url, body)
    first, second = (item["embedding"] for item in answer["data"])
    assert len(first) == 384
    assert sum(value * value for value in first) == pytest.approx(1.0)
    assert first != second
    ids = (await post(session, f"{server}/tokenize", {"prompt": "hello there"}))["tokens"]
    assert answer["usage"]["prompt_tokens"] > len(ids)
    encoded = await post(session, url, {"input": ids, "encoding_format": "base64", "dimensions": 384})
    assert struct.unpack("<384f", base64.b64decode(encoded["data"][0]["embedding"])) == pytest.approx(first)
    assert (await post(session, url, {"input": "x", "dimensions": 0}, 400))["error"]["param"] == "dimensions"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", {"messages": []}, "body.messages"),
        ("/v1/messages", {"messages": ["x"]}, "body.messages"),
        ("/v1/responses", {}, "body.input"),
        ("/v1/responses", {"input": 7}, "body.input"),
        ("/v1/embeddings", {}, "body.input"),
        ("/inference/v1/generate", {"token_ids": ["a"]}, "body.token_ids"),
        ("/inference/v1/generate", {"token_ids": [1], "sampling_params": "x"}, "body.sampling_params"),
        ("/v1/completions/render", {}, "body.prompt"),
    ],
)
async def test_missing_fields(session: aiohttp.ClientSession, server: str, path: str, body: Any, field: str) -> None:
    error = (await post(session, server + path, body, 400))["error"]
    assert (error["param"], error["code"]) == (field, 400)


async def test_ranks_behind_one_port(session: aiohttp.ClientSession) -> None:
    options = SimOptions(port=0, model="tiny", data_parallel_size=2, enable_kvcache=True)
    async with Fleet(options) as fleet:
        url = f"http://127.0.0.1:{fleet.servers[0].port}"
        body = {"prompt": "x", "max_tokens": 1}
        for rank, status in (("0", 200), ("1", 200), ("2", 400)):
            async with session.post(
                f"{url}/v1/completions", json=body, headers={"x-data-parallel-rank": rank}
            ) as answer:
                assert answer.status == status
                answered = await answer.json()
        assert answered["error"]["message"] == "data_parallel_rank 2 is out of range [0, 2)."
        async with session.get(f"{url}/metrics") as answer:
            page = await answer.text()
        for rank in "01":
            assert f'vllm:num_requests_running{{engine="{rank}",model_name="tiny"}} 0.0' in page
            assert f'vllm:prompt_tokens_total{{engine="{rank}",model_name="tiny"}} 1.0' in page
        async with session.get(f"{url}/kv_event_sources") as answer:
            assert await answer.json() == {}


@pytest.mark.parametrize("files", [True, False])
async def test_https(session: aiohttp.ClientSession, tmp_path: Path, files: bool) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    if files:
        for path, pem in zip((certificate, key), self_signed(datetime.now(UTC)), strict=True):
            path.write_bytes(pem)
        options = SimOptions(port=0, model="tiny", ssl_certfile=str(certificate), ssl_keyfile=str(key))
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(certificate))
    else:
        options, verify = SimOptions(port=0, model="tiny", self_signed_certs=True), False
    async with Fleet(options) as fleet:
        url = f"https://127.0.0.1:{fleet.servers[0].port}/health"
        async with session.get(url, ssl=verify) as answer:
            assert answer.status == 200
    if files:
        key.write_text("nonsense")
        with pytest.raises(ValueError, match="--ssl-certfile"):
            Fleet(options)
