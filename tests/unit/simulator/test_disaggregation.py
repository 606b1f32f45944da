"""Prefill here, decode there: what is asked and answered, and how the sidecar's errors look."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from epp_simulator.disaggregation import prefill_body
from epp_simulator.fleet import Fleet
from epp_simulator.options import SimOptions

ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
PROMPT = "one two three four " * 20
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}], "max_completion_tokens": 3},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 3},
    "/v1/messages": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3},
    "/inference/v1/generate": {"token_ids": list(range(1, 81)), "sampling_params": {"max_tokens": 3}},
}


class Pair:
    """A decode server behind a sidecar, and a prefill server."""

    def __init__(self, decode: Fleet, prefill: Fleet, session: aiohttp.ClientSession) -> None:
        self.decode, self.prefill, self._session = decode.servers[0], prefill.servers[0], session
        self.prefiller = f"127.0.0.1:{self.prefill.port}"

    async def ask(self, path: str, body: Any, port: int = 0, **headers: str) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{port or self.decode.port}{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.post(url, json={"model": "tiny"} | body, headers=named) as answer:
            text = await answer.text()
            return answer.status, text if answer.content_type == "text/event-stream" else json.loads(text)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    base: dict[str, Any] = {"port": 0, "model": "tiny", "enable_kvcache": True, "block_size": 16}
    async with (
        Fleet(SimOptions(**base, pd_sidecar=True)) as decode,
        Fleet(SimOptions(**base)) as prefill,
        aiohttp.ClientSession() as session,
    ):
        yield Pair(decode, prefill, session)


@pytest.mark.parametrize("path", BODIES)
async def test_the_prompt_is_read_by_the_server_in_the_header(pair: Pair, path: str) -> None:
    status, whole = await pair.ask(path, BODIES[path], x_prefiller_host_port=pair.prefiller)
    assert status == 200
    assert (pair.decode.requests, pair.prefill.requests) == (1, 1)
    assert whole.get("kv_transfer_params") is None
    status, _ = await pair.ask(path, BODIES[path])
    assert (status, pair.prefill.requests) == (200, 1)


async def test_fetching_the_cache_takes_the_time_that_is_set() -> None:
    base: dict[str, Any] = {"port": 0, "model": "tiny", "enable_kvcache": True, "block_size": 16}
    async with (
        Fleet(SimOptions(**base, pd_sidecar=True, kv_cache_transfer_latency=0.4)) as decode,
        Fleet(SimOptions(**base)) as prefill,
        aiohttp.ClientSession() as session,
    ):
        pair = Pair(decode, prefill, session)
        path, body = next(iter(BODIES.items()))
        began = time.monotonic()
        assert (await pair.ask(path, body, x_prefiller_host_port=pair.prefiller))[0] == 200
        assert time.monotonic() - began >= 0.4


async def test_a_stream_comes_from_the_decode_server(pair: Pair) -> None:
    body = BODIES["/v1/completions"] | {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    for cached in (0, 80):  # what the prefill server had: nothing the first time
        status, text = await pair.ask("/v1/completions", body, x_prefiller_host_port=pair.prefiller)
        assert status == 200
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert len(events) == 4
        usage = events[-1]["usage"]
        assert usage["completion_tokens"] == 3
        assert usage["prompt_tokens_details"]["cached_tokens"] == min(cached, (usage["prompt_tokens"] - 1) // 16 * 16)
    assert pair.prefill.requests == 2


async def test_a_prefill_server_names_its_blocks(pair: Pair) -> None:
    body = prefill_body("/v1/completions", BODIES["/v1/completions"] | {"stream": True, "stream_options": {}})
    assert body == {"prompt": PROMPT, "max_tokens": 1, "stream": False, "kv_transfer_params": ASK}
    status, answer = await pair.ask("/v1/completions", body, pair.prefill.port, x_request_id="pd-1")
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 1
    tokens = answer["usage"]["prompt_tokens"]
    told = answer["kv_transfer_params"]
    assert [len(group) for group in told.pop("remote_block_ids")] == [-(-tokens // 16)]
    assert told == {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_engine_id": f"simulated-{pair.prefill.port}",
        "remote_request_id": "cmpl-pd-1",
        "remote_host": "127.0.0.1",
        "remote_port": pair.prefill.port,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": 0,
    }
    generate = prefill_body("/inference/v1/generate", {"token_ids": [1]})
    assert generate["sampling_params"] == {"max_tokens": 1}


async def test_what_was_read_elsewhere_is_not_computed_again() -> None:
    """A token takes a second here: only the last one of the prompt is computed."""
    slow = SimOptions(port=0, model="tiny", enable_kvcache=True, prefill_time_per_token=1.0)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
    body["kv_transfer_params"] = {"do_remote_prefill": True, "remote_num_tokens": 10_000}
    async with Fleet(slow) as fleet, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{fleet.servers[0].port}/v1/completions"
        async with session.post(url, json=body, timeout=aiohttp.ClientTimeout(total=40)) as answer:
            assert answer.status == 200
            assert (await answer.json())["usage"]["prompt_tokens"] > 60


async def test_errors_of_the_prefill_server_are_the_answer(pair: Pair) -> None:
    status, told = await pair.ask("/v1/completions", {"prompt": PROMPT}, x_prefiller_host_port="127.0.0.1:1")
    assert (status, told["type"]) == (502, "BadGateway")
    assert "prefill server 127.0.0.1:1" in told["message"]
    status, told = await pair.ask(
        "/v1/completions", {"prompt": PROMPT, "model": "other"}, x_prefiller_host_port=pair.prefiller
    )
    assert (status, told["error"]["type"]) == (404, "NotFoundError")
    status, told = await pair.ask("/v1/completions", {"prompt": PROMPT}, x_prefiller_host_port="no port")
    assert status == 502


async def test_without_the_option_the_header_means_nothing(pair: Pair) -> None:
    status, _ = await pair.ask(
        "/v1/completions", BODIES["/v1/completions"], pair.prefill.port, x_prefiller_host_port="127.0.0.1:1"
    )
    assert status == 200
