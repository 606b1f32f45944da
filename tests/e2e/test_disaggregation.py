"""Prefill/decode through a real Envoy: who gets the request, who is named in its headers, and what is counted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

CONFIG = (Path(__file__).parents[2] / "configs/pd.yaml").read_text()
LONG = "Tell me all that is known about the sea. " * 60
PREFILLER, ENCODERS = "x-prefiller-host-port", "x-encoder-hosts-ports"
FORGED = {"x_prefiller_host_port": "10.9.9.9:1", "x_encoder_hosts_ports": "10.9.9.9:2"}


class Pool:
    """Two decode and two prefill servers behind Envoy."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        served = stage.servers.served
        self.decode = [server for server in served if server.labels["llm-d.ai/role"] == "decode"]
        self.prefill = {f"127.0.0.1:{server.port}" for server in served if server not in self.decode}

    async def ask(self, prompt: Any, **headers: str) -> tuple[str, dict[str, str]]:
        """The role of the server that answered, and the headers it got."""
        answer = await self.stage.post({"model": "m", "prompt": prompt, "max_tokens": 5}, **headers)
        assert answer.status == 200, await answer.text()
        index, received = self.stage.servers.received[-1]
        return self.stage.servers.roles[index], received.headers

    async def page(self) -> str:
        page: str = await self.stage.picker.metrics()
        return page

    async def decisions(self, name: str = "llm_d_epp_disagg_decision_total") -> dict[str, float]:
        found = re.findall(rf'^{name}{{.*decision_type="([^"]+)".*}} (\S+)$', await self.page(), re.MULTILINE)
        return {kind: float(value) for kind, value in found}

    async def inflight(self) -> float:
        found = re.findall(r"^llm_d_epp_inflight_(?:requests|tokens){.*} (\S+)$", await self.page(), re.MULTILINE)
        assert found
        return sum(map(float, found))

    async def without_prefill(self) -> None:
        """The prefill servers leave the pool; returns when the picker has noticed."""
        await self.knows(4)  # else two that have not been measured yet look like two that have gone
        self.stage.picker.set_endpoints(self.decode)
        await self.knows(2)

    async def knows(self, count: int) -> None:
        """Wait until the picker has so many servers that have been measured."""
        for _ in range(200):
            found = re.findall(r"^llm_d_epp_per_endpoint_queue_size{", await self.page(), re.MULTILINE)
            if len(found) == count:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"the picker has {len(found)} servers instead of {count}")


@pytest.fixture
async def pool(stage: Any) -> AsyncIterator[Pool]:
    async with stage(config=CONFIG, roles=("decode", "prefill", "decode", "prefill")) as s:
        yield Pool(s)


async def test_both_servers_of_a_request(pool: Pool) -> None:
    # A long prompt that nobody has: one server reads it, another one answers.
    role, headers = await pool.ask(LONG)
    assert role == "decode"
    assert headers[PREFILLER] in pool.prefill
    first = headers[PREFILLER]

    # Again: the decode server has it by now.
    role, headers = await pool.ask(LONG)
    assert role == "decode"
    assert PREFILLER not in headers

    # The conversation goes on by a few words: still not worth a transfer. By many: the same prefill server reads them.
    role, headers = await pool.ask(LONG + "And then?")
    assert (role, PREFILLER in headers) == ("decode", False)
    role, headers = await pool.ask(LONG + "And then? " * 150)
    assert (role, headers[PREFILLER]) == ("decode", first)

    # Short ones stay, and what a client claims never arrives, whatever is decided.
    role, headers = await pool.ask("Hello", **FORGED)
    assert (role, {PREFILLER, ENCODERS} & set(headers)) == ("decode", set())
    role, headers = await pool.ask("Something else. " * 100, **FORGED)
    assert (role, headers[PREFILLER] in pool.prefill, ENCODERS in headers) == ("decode", True, False)

    # The prefill server counts until the answer begins, the decode server until it ends.
    streaming = asyncio.create_task(pool.ask("A long answer. " * 100, x_do_stream="20", x_do_gap="0.1"))
    for _ in range(100):
        if (inflight := await pool.inflight()) == 1.0:
            break
        await asyncio.sleep(0.02)
    assert inflight == 1.0  # one request of the decode server; the tokens and the prefill server are released
    role, headers = await streaming
    assert (role, headers[PREFILLER] in pool.prefill) == ("decode", True)

    assert await pool.decisions() == {"prefill-decode": 4.0, "decode-only": 3.0}
    assert await pool.decisions("llm_d_epp_pd_decision_total") == {"prefill-decode": 4.0, "decode-only": 3.0}
    await pool.stage.idle()
    assert await pool.inflight() == 0.0
    await pool.stage.clean()


async def test_without_prefill_servers_decode_does_it_all(pool: Pool) -> None:
    await pool.without_prefill()
    for number in range(3):
        role, headers = await pool.ask(f"{number} " + LONG, **FORGED)
        assert (role, {PREFILLER, ENCODERS} & set(headers)) == ("decode", set())
    assert await pool.decisions() == {"decode-only": 3.0}
    assert await pool.stage.metric("llm_d_epp_disagg_fallback_total") == 3.0
    assert 'reason="no-prefill-endpoint"' in await pool.page()
    await pool.stage.idle()
    assert await pool.inflight() == 0.0
    await pool.stage.clean()
