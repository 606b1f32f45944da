"""What the conformance suite of the Gateway API Inference Extension asks of an endpoint picker, through Envoy.

The gateway's side of the suite needs a cluster; these are the picker's duties in it, with the same request, the same
headers, and the same numbers of requests.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).parents[2].joinpath("configs", "conformance.yaml").read_text()
BODY = {"model": "conformance-fake-model", "prompt": "Write as if you were a critic: San Francisco"}
SELECTION = "test_epp_endpoint_selection"
FOREIGN = ("10.9.8.7:3000", "10.9.8.6", "[fd00::9]:3000", "not an address")
"""Endpoints of another pool, which the suite lists beside ours."""

REQUESTS, AT_ONCE = 100, 10
FLAVOURS = ["istio", "kgateway", "standalone"]


async def served_by(s: Any, allowed: list[int], count: int = REQUESTS) -> Counter[str]:
    """Who answers `count` requests that name these servers among foreign ones. Every answer is 200."""
    names = [f"127.0.0.1:{s.servers.ports[number]}" for number in allowed] + list(FOREIGN)
    random.Random(count).shuffle(names)
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask() -> str:
        async with gate:
            answer = await s.post(BODY, "/primary-gateway-test", **{SELECTION: ",".join(names)})
            assert answer.status == 200, await answer.text()
            told: str = answer.headers["x-conformance-test-served-endpoint"]
            assert told == f"127.0.0.1:{s.servers.ports[int(answer.headers['x-served-by'])]}"
            return told

    return Counter(await asyncio.gather(*(ask() for _ in range(count))))


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_gateway_follows_the_header(stage: Any, flavour: str) -> None:
    """One, two and three allowed servers, 100 requests each, 10 at once: every answer comes from an allowed one."""
    async with stage(flavour, config=CONFIG, flags=("--zap-encoder", "json")) as s:
        everyone = [f"127.0.0.1:{port}" for port in s.servers.ports]
        for allowed in ([0], [1], [2], [0, 2], [0, 1, 2]):
            seen = await served_by(s, allowed)
            assert set(seen) <= {everyone[number] for number in allowed}
            assert seen.total() == REQUESTS
        await s.idle()
        await s.clean()


async def test_an_address_alone_stands_for_all_its_ports(stage: Any) -> None:
    """Three servers on one address are what the ranks of a data-parallel pod are."""
    async with stage("istio", config=CONFIG) as s:
        seen: set[str] = set()
        for _ in range(60):
            answer = await s.post(BODY, "/primary-gateway-dp-test", **{SELECTION: "127.0.0.1"})
            assert answer.status == 200
            seen.add(answer.headers["x-served-by"])
        assert seen == {"0", "1", "2"}
        await s.clean()


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_requests_without_a_body_and_answers_that_are_no_completions(stage: Any, flavour: str) -> None:
    async with stage(flavour, config=CONFIG) as s:
        for path in ("/primary", "/", "/secondary/deep?x=1"):
            async with s.client.get(s.envoy.url + path) as answer:
                assert answer.status == 200
                assert answer.headers["x-conformance-test-served-endpoint"]
        answer = await s.post(b'{"echo": true}', "/any/path/at/all", content_type="text/plain")
        assert answer.status == 200
        await s.idle()
        await s.clean()


async def test_a_header_that_names_nobody_of_the_pool_is_refused(stage: Any) -> None:
    async with stage("istio", config=CONFIG) as s:
        answer = await s.post(BODY, **{SELECTION: ",".join(FOREIGN)})
        assert answer.status == 429
        assert "header-based-testing-filter" in await answer.text()


async def test_without_the_setting_no_client_chooses_its_server(stage: Any) -> None:
    async with stage("istio") as s:
        seen: set[str] = set()
        for number in range(60):
            body = {**BODY, "prompt": f"{number} {BODY['prompt']}"}  # equal prompts would stay together
            answer = await s.post(body, **{SELECTION: f"127.0.0.1:{s.servers.ports[0]}"})
            assert answer.status == 200
            assert "x-conformance-test-served-endpoint" not in answer.headers
            seen.add(answer.headers["x-served-by"])
        assert len(seen) > 1
