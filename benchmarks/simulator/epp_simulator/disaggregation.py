"""Prefill on one simulated server, decode on another: what NIXL's connector says, and the proxy that carries it.

A prefill server that is asked with `kv_transfer_params.do_remote_decode` answers with the blocks it holds; a decode
server that gets them back does not compute those tokens. With `--pd-sidecar` a server does as llm-d's routing sidecar
before a decode server does: it has the prompt read by the server that `x-prefiller-host-port` names, then decodes.
No block is moved: a decode server believes what it is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from epp_simulator.engine import Job

PREFILLER = "x-prefiller-host-port"

_ASK_FOR_BLOCKS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
_CAPS = {
    "/v1/responses": ("max_output_tokens",),
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/messages": ("max_tokens",),
}


class PrefillFailedError(Exception):
    """The prefill server did not read the prompt. `status` and `body` are the answer to the client."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Prefiller:
    """Asks prefill servers. `close` it."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def read(self, host_port: str, path: str, body: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        """Have the prompt read there; returns the body for the decode server. Raises `PrefillFailedError`."""
        url = f"http://{host_port}{path}"
        try:
            async with self._session.post(
                url, json=prefill_body(path, body), headers={"x-request-id": request_id}
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, ValueError) as error:
            message = f"prefill server {host_port}: {error}"
            raise PrefillFailedError(
                502,
                {"object": "error", "message": message, "type": "BadGateway", "param": None, "code": 502},
            ) from error
        told = json.loads(text) if "json" in answer.content_type else {"message": text}
        if answer.status != 200:
            raise PrefillFailedError(answer.status, told)
        return dict(body) | {"kv_transfer_params": told.get("kv_transfer_params")}


def prefill_body(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The request for the prefill server: one token, whole, and the blocks stay for somebody else."""
    asked = {name: value for name, value in body.items() if name != "stream_options"}
    asked |= {"stream": False, "kv_transfer_params": _ASK_FOR_BLOCKS}
    if path in _CAPS:
        return asked | dict.fromkeys(_CAPS[path], 1)
    return asked | {"sampling_params": (body.get("sampling_params") or {}) | {"max_tokens": 1}}


def accept(job: Job, params: Any) -> None:
    """Take in a request's `kv_transfer_params`: what has been read elsewhere need not be read again."""
    if not isinstance(params, dict):
        return
    job.stays_for_decode = params.get("do_remote_decode") is True
    if params.get("do_remote_prefill") is True:
        job.remote_tokens = int(params.get("remote_num_tokens") or 0)
        job.remote_cached_tokens = int(params.get("remote_prefill_cached_tokens") or 0)


def transfer_params(job: Job, request_id: str, host: str, port: int, block_size: int) -> dict[str, Any]:
    """What a prefill server answers, as vLLM 0.32 with the NixlConnector."""
    blocks = -(-job.prompt_tokens // block_size)
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [list(range(blocks, 0, -1))],
        "remote_engine_id": f"simulated-{port}",
        "remote_request_id": request_id,
        "remote_host": host,
        "remote_port": port,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": job.prompt_tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": job.cached_tokens,
    }
