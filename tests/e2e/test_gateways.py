"""Every request shape through every gateway style: bodies byte-equal, the pick obeyed, nothing out of place."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from epp.demo.envoy_config import FLAVOURS

PROMPT = {"model": "m", "prompt": "Write as if you were a critic: San Francisco", "max_tokens": 5}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def big_body(size: int) -> bytes:
    """A valid request of about `size` bytes whose content does not repeat."""
    text = os.urandom(size // 2).hex()
    return json.dumps(PROMPT | {"prompt": text}).encode()


async def slowly(pieces: list[bytes], pause: float) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(pause)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_request_and_response_shapes(stage: Any, flavour: str, tls: bool) -> None:
    async with stage(flavour, tls=tls, buffer_limit=8 << 20 if flavour == "buffered" else 1 << 20) as s:
        received = s.servers.received

        answer = await s.client.get(s.envoy.url + "/v1/models")
        assert answer.status == 200
        assert received[-1][1].method == "GET"

        answer = await s.post(PROMPT)
        assert answer.status == 200
        assert json.loads(received[-1][1].body) == PROMPT
        assert (await answer.json())["usage"]["total_tokens"] == 8
        assert answer.headers["x-served-by"] == str(received[-1][0])
        assert (
            f"127.0.0.1:{s.servers.ports[received[-1][0]]}" == received[-1][1].headers["x-gateway-destination-endpoint"]
        )

        for size in (62_000, 300_000, 5_000_000):
            body = big_body(size)
            answer = await s.post(body)
            assert answer.status == 200
            assert received[-1][1].sha == sha(body)

        body = big_body(20_000)
        answer = await s.post(slowly([body[:10], body[10:9_000], body[9_000:]], 0.03))
        assert answer.status == 200
        assert received[-1][1].sha == sha(body)

        answer = await s.post(PROMPT, x_do_size="200000")
        assert len(json.loads(await answer.read())["choices"][0]["text"]) == 200_000

        answer = await s.post(PROMPT, x_do_stream="20")
        events = (await answer.read()).decode().split("\n\n")
        assert [json.loads(e.removeprefix("data: "))["choices"][0]["text"] for e in events[:20]] == [
            f"t{i}" for i in range(20)
        ]
        assert events[21] == "data: [DONE]"

        answer = await s.post(PROMPT, x_do_status="503")
        assert answer.status == 503

        await s.clean()
        await s.idle()


@pytest.mark.parametrize("flavour", ["standalone", "light", "istio", "kgateway"])
async def test_the_first_event_is_not_delayed(stage: Any, flavour: str) -> None:
    async with stage(flavour) as s:
        headers = {"x-do-stream": "5", "x-do-gap": "0.3"}
        began = time.monotonic()
        async with s.client.post(s.envoy.url + "/v1/completions", json=PROMPT, headers=headers) as answer:
            first = await answer.content.readline()
            first_after = time.monotonic() - began
            await answer.read()
            whole_after = time.monotonic() - began
        assert first.startswith(b"data: ")
        # The server needs 1.5 s for the whole answer: a gateway that held events back would show it in the first one.
        assert first_after < whole_after / 2
        assert whole_after > 1.4
        await s.clean()


@pytest.mark.parametrize("flavour", ["standalone", "light", "istio"])
async def test_a_client_that_leaves_frees_what_it_held(stage: Any, flavour: str) -> None:
    async with stage(flavour) as s:
        for _ in range(3):
            headers = {"x-do-stream": "1000", "x-do-gap": "0.02"}
            answer = await s.client.post(s.envoy.url + "/v1/completions", json=PROMPT, headers=headers)
            await answer.content.readline()
            answer.close()
        await s.idle()
        assert (await s.post(PROMPT)).status == 200
        await s.clean()


async def test_the_load_decides_where_requests_go(stage: Any) -> None:
    config = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: queue-scorer}]
schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]
"""
    async with stage("istio", config=config) as s:
        s.servers.waiting = {0: 9.0, 1: 0.0, 2: 5.0}
        await s.post(PROMPT)
        await asyncio.sleep(0.6)
        s.servers.received.clear()
        for _ in range(5):
            await s.post(PROMPT)
        assert {index for index, _ in s.servers.received} == {1}


async def test_a_shared_prefix_stays_on_one_server(stage: Any) -> None:
    async with stage("istio") as s:
        prefix = "You are a helpful assistant. " * 100
        for turn in range(6):
            await s.post(PROMPT | {"prompt": prefix + f"turn {turn}"})
        assert len({index for index, _ in s.servers.received[1:]}) == 1
        assert await s.metric("llm_d_epp_prefix_indexer_hit_ratio_count") >= 6


async def test_a_client_cannot_set_the_pickers_headers(stage: Any) -> None:
    async with stage("standalone") as s:
        await s.post(
            PROMPT,
            x_gateway_destination_endpoint="127.0.0.1:1",
            x_prefiller_host_port="10.0.0.1:1",
            x_encoder_hosts_ports="10.0.0.1:1",
            x_kv_cache_source_host_port="10.0.0.1:1",
            x_data_parallel_host_port="10.0.0.1:1",
        )
        _, received = s.servers.received[-1]
        assert received.headers["x-gateway-destination-endpoint"] != "127.0.0.1:1"
        assert received.headers["x-request-id"]
        forged = {"x-prefiller-host-port", "x-encoder-hosts-ports", "x-kv-cache-source-host-port"}
        assert not (forged | {"x-data-parallel-host-port"}) & set(received.headers)
        await s.clean()


@pytest.mark.parametrize("flavour", ["standalone", "istio", "buffered"])
async def test_refusals_say_what_happened(stage: Any, flavour: str) -> None:
    async with stage(flavour, flags=("--max-request-body-bytes=100000",)) as s:
        cases: list[tuple[Any, int, str]] = [
            (b'{"model": "m", "prompt": ', 400, "BadRequest"),
            (b'\xff{"model": "m"}', 400, "BadRequest"),
            ({"prompt": "x"}, 400, "model not found"),
            ({"model": "m"}, 400, "must have prompt field"),
            (big_body(200_000), 413, "PayloadTooLarge"),
        ]
        for body, status, text in cases:
            answer = await s.post(body)
            assert answer.status == status
            assert text in await answer.text()
        assert not s.servers.received
        assert (await s.post(PROMPT)).status == 200
        await s.clean()


async def test_an_empty_pool_is_503_with_its_reason_and_recovers(stage: Any) -> None:
    async with stage("standalone") as s:
        endpoints = s.picker.endpoints_path.read_text()
        s.picker.endpoints_path.write_text("endpoints: []\n")
        for _ in range(100):
            answer = await s.post(PROMPT)
            if answer.status == 503:
                break
            await asyncio.sleep(0.05)
        assert answer.status == 503
        assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
        s.picker.endpoints_path.write_text(endpoints)
        for _ in range(100):
            answer = await s.post(PROMPT)
            if answer.status == 200:
                break
            await asyncio.sleep(0.05)
        assert answer.status == 200


async def test_a_subset_hint_is_obeyed(stage: Any) -> None:
    async with stage("standalone", subset=("127.0.0.1:1",)) as s:
        assert (await s.post(PROMPT)).status == 503
    async with stage("standalone", subset=("127.0.0.1",)) as s:
        assert (await s.post(PROMPT)).status == 200


async def test_model_rewrite_reaches_the_server_and_is_hidden_from_the_client(stage: Any) -> None:
    for flavour in ("standalone", "buffered"):
        async with stage(flavour) as s:
            body = b'{"big": 12345678901234567890, "model": "m", "prompt": "\\u00e9", "z": 1, "a": 2}'
            answer = await s.post(body, x_llm_d_model_name_rewrite="adapter-7")
            assert s.servers.received[-1][1].body == body.replace(b'"m"', b'"adapter-7"')
            if flavour == "standalone":  # the buffered gateway keeps response bodies to itself
                assert (await answer.json())["model"] == "m"
            await s.clean()


async def test_usage_and_latency_reach_the_metrics(stage: Any) -> None:
    async with stage("standalone") as s:
        await s.post(PROMPT, x_do_stream="10", x_do_gap="0.02")
        await s.post(PROMPT)
        await s.idle()
        assert await s.metric("llm_d_epp_request_total") == 2
        assert await s.metric("llm_d_epp_request_input_tokens_sum") == 7 + 5
        assert await s.metric("llm_d_epp_request_output_tokens_sum") == 4 + 3
        assert await s.metric("llm_d_epp_request_ttft_seconds_count") == 2
        assert await s.metric("llm_d_epp_request_streaming_itl_seconds_count") >= 1
        assert await s.metric("llm_d_epp_inflight_requests") == 0


async def test_scores_are_emitted_on_demand(stage: Any) -> None:
    async with stage("istio", flags=("--emit-endpoint-scores",)) as s:
        assert (await s.post(PROMPT)).status == 200
        await s.clean()


async def test_response_bypass_leaves_the_answer_alone(stage: Any) -> None:
    async with stage("standalone", flags=("--response-bypass",)) as s:
        for size in (10, 100_000):
            answer = await s.post(PROMPT, x_do_size=str(size))
            assert len((await answer.json())["choices"][0]["text"]) == size
        answer = await s.post(PROMPT, x_do_stream="50")
        assert (await answer.read()).count(b"data: ") == 52
        stats = await s.envoy.stats()
        assert stats["server_half_closed"] == 3
        await s.clean()


async def test_a_client_that_speaks_http2(stage: Any) -> None:
    async with stage("standalone") as s:
        process = await asyncio.create_subprocess_exec(
            "curl", "-s", "--http2-prior-knowledge", "-H", "Transfer-Encoding: chunked", "-d", json.dumps(PROMPT),
            s.envoy.url + "/v1/completions", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert json.loads(out)["usage"]["total_tokens"] == 8
        await s.clean()


async def test_many_concurrent_requests_with_disconnects_leave_nothing_behind(stage: Any) -> None:
    async with stage("istio") as s:

        async def one(number: int) -> None:
            headers = {"x-do-stream": "30", "x-do-gap": "0.005"} if number % 2 else {}
            try:
                timeout = aiohttp.ClientTimeout(total=0.06 if number % 5 == 1 else 30)
                async with s.client.post(
                    s.envoy.url + "/v1/completions", json=PROMPT, headers=headers, timeout=timeout
                ) as answer:
                    await answer.read()
                    assert answer.status == 200
            except TimeoutError:
                assert number % 5 == 1

        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(60)))
        await s.idle()
        await s.clean()
