"""The simulated server answers as vLLM does: bodies, streams, errors, metrics page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from epp_simulator.fleet import Fleet
from epp_simulator.options import SimOptions

DATA = Path(__file__).parents[2] / "data" / "simulator"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def options(**changes: Any) -> SimOptions:
    return SimOptions(**({"port": 0, "model": "tiny", "enable_kvcache": True, "block_size": 8} | changes))


def url(fleet: Fleet, path: str, index: int = 0) -> str:
    host, port = fleet.endpoints[index]
    return f"http://{host}:{port}{path}"


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three four " * 8}], "max_tokens": 4}


async def test_a_repeated_prompt_is_cached(session: aiohttp.ClientSession) -> None:
    async with Fleet(options()) as fleet:
        usages = []
        for _ in range(2):
            async with session.post(url(fleet, "/v1/chat/completions"), json=CHAT) as answer:
                assert answer.status == 200
                body = await answer.json()
                usages.append(body["usage"])
        assert body["model"] == "tiny"
        assert body["choices"][0]["message"]["role"] == "assistant"
        prompt = usages[0]["prompt_tokens"]
        assert usages[0]["prompt_tokens_details"]["cached_tokens"] == 0
        assert usages[1]["prompt_tokens_details"]["cached_tokens"] == (prompt - 1) // 8 * 8
        assert usages[1]["total_tokens"] == prompt + usages[1]["completion_tokens"]


async def test_stream_has_one_event_per_token_then_usage_then_done(session: aiohttp.ClientSession) -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, "max_tokens": 5}
    async with Fleet(options()) as fleet, session.post(url(fleet, "/v1/chat/completions"), json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = [line.removeprefix("data: ") for line in (await answer.text()).split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for c in chunks[1:-1]] == [None] * 4 + ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5


async def test_errors_have_vllms_shape(session: aiohttp.ClientSession) -> None:
    async with Fleet(options(max_model_len=64)) as fleet:
        cases: list[tuple[Any, int]] = [
            ({"model": "nope", "prompt": "x"}, 404),
            ({"model": "tiny"}, 400),
            ({"model": "tiny", "prompt": "x", "max_tokens": 1000}, 400),
            ({"model": "tiny", "prompt": "x", "max_tokens": "many"}, 400),
            ([1], 400),
        ]
        for body, status in cases:
            async with session.post(url(fleet, "/v1/completions"), json=body) as answer:
                assert answer.status == status
                assert (await answer.json())["error"]["code"] == status
        async with session.post(url(fleet, "/v1/completions"), data=b"{") as answer:
            assert answer.status == 400


async def test_full_queue_is_429_and_seats_are_given_in_order(session: aiohttp.ClientSession) -> None:
    slow = options(max_num_seqs=1, max_waiting_queue_length=1, time_to_first_token=0.2)
    async with Fleet(slow) as fleet:

        async def ask() -> int:
            body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
            async with session.post(url(fleet, "/v1/completions"), json=body) as answer:
                await answer.read()
                return answer.status

        first = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        second = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        async with session.get(url(fleet, "/metrics")) as answer:
            page = await answer.text()
        assert 'num_requests_running{engine="0",model_name="tiny"} 1.0' in page
        assert 'num_requests_waiting{engine="0",model_name="tiny"} 1.0' in page
        assert await ask() == 429
        assert (await first, await second) == (200, 200)


async def test_a_client_that_goes_away_frees_its_seat_and_blocks(session: aiohttp.ClientSession) -> None:
    async with Fleet(options(max_num_seqs=1, inter_token_latency=0.02)) as fleet:
        engine = fleet.servers[0].engines[0]
        body = CHAT | {"stream": True, "max_tokens": 500, "ignore_eos": True}
        answer = await session.post(url(fleet, "/v1/chat/completions"), json=body)
        await answer.content.readline()
        assert len(engine.running) == 1
        answer.close()
        for _ in range(100):
            if not engine.running:
                break
            await asyncio.sleep(0.02)
        assert not engine.running
        assert engine.cache.usage == 0.0


async def test_failures_can_be_asked_for_and_injected(session: aiohttp.ClientSession) -> None:
    async with Fleet(options(failure_injection_rate=100, failure_types=("rate_limit",))) as fleet:
        async with session.post(url(fleet, "/v1/chat/completions"), json=CHAT) as answer:
            assert answer.status == 429
        async with session.post(
            url(fleet, "/v1/chat/completions"), json=CHAT, headers={"x-return-error": "503"}
        ) as answer:
            assert answer.status == 503


def families(page: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Family name -> (type, label names of its first sample)."""
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    labels: dict[str, frozenset[str]] = {}
    for name, text in re.findall(r"^(vllm:[a-z_]+)(?:\{([^}]*)\})? ", page, re.M):
        labels.setdefault(re.sub(r"_(bucket|sum|count)$", "", name), frozenset(re.findall(r'(\w+)="', text)) - {"le"})
    return {name: (kind, labels.get(name, frozenset())) for name, kind in types.items() if name.startswith("vllm:")}


async def test_metrics_page_has_vllms_names_types_and_labels(session: aiohttp.ClientSession) -> None:
    real = families((DATA / "vllm_metrics.txt").read_text())
    async with Fleet(options(lora_modules=("lora-a",))) as fleet:
        async with session.post(url(fleet, "/v1/chat/completions"), json=CHAT | {"model": "lora-a"}) as answer:
            assert answer.status == 200
        async with session.get(url(fleet, "/metrics")) as answer:
            simulated = families(await answer.text())
    assert len(simulated) > 30
    for name, (kind, labels) in simulated.items():
        assert name in real, name
        assert real[name][0] == kind
        if name != "vllm:cache_config_info":  # the real one carries 30 labels; ours the ones that are read
            assert real[name][1] == labels, name
    assert (
        {"block_size", "num_gpu_blocks"} <= simulated["vllm:cache_config_info"][1] <= real["vllm:cache_config_info"][1]
    )


async def test_fake_metrics_replace_real_ones(session: aiohttp.ClientSession) -> None:
    fakes = {"waiting-requests": 7, "kv-cache-usage": 0.5, "loras": [{"running": "a,b", "waiting": "c"}]}
    faked = options(fake_metrics=json.dumps(fakes), lora_modules=("a",))
    async with Fleet(faked) as fleet, session.get(url(fleet, "/metrics")) as answer:
        page = await answer.text()
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 7.0' in page
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.5' in page
    assert 'running_lora_adapters="a,b",waiting_lora_adapters="c"' in page


async def test_models_tokenize_render_health_and_adapters(session: aiohttp.ClientSession) -> None:
    async with Fleet(options(instances=2, startup_duration=60.0)) as fleet:
        assert len({port for _, port in fleet.endpoints}) == 2
        async with session.get(url(fleet, "/health", 1)) as answer:
            assert answer.status == 503
        async with session.post(url(fleet, "/v1/load_lora_adapter"), json={"lora_name": "extra"}) as answer:
            assert answer.status == 200
        async with session.get(url(fleet, "/v1/models")) as answer:
            assert [model["id"] for model in (await answer.json())["data"]] == ["tiny", "extra"]
        async with session.post(url(fleet, "/tokenize"), json={"prompt": "hello world"}) as answer:
            tokens = (await answer.json())["tokens"]
        async with session.post(url(fleet, "/v1/completions/render"), json={"prompt": "hello world"}) as answer:
            assert (await answer.json())[0]["token_ids"] == tokens
        async with session.post(url(fleet, "/v1/unload_lora_adapter"), json={"lora_name": "extra"}) as answer:
            assert answer.status == 200
