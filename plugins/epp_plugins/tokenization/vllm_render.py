"""The backend `vllm`: a vLLM server renders and tokenizes, as the model servers themselves do.

`POST {url}/v1/completions/render` and `/v1/chat/completions/render` over kept HTTP/1.1 connections. The client's body
goes there as it is, with the model name replaced; Anthropic's Messages and OpenAI's Responses are converted to chat
first. Servers have these paths with `--enable-scale-out`, render servers (`vllm launch render`) always.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import msgspec

from epp.datalayer.durations import seconds
from epp_plugins.parsers.splice import replace_member
from epp_plugins.parsers.token_ids import TokenId
from epp_plugins.parsers.vllm_features import Features, ordered_features
from epp_plugins.tokenization.anthropic_chat import messages_request
from epp_plugins.tokenization.chat import chat_body
from epp_plugins.tokenization.params import VLLMParams
from epp_plugins.tokenization.responses_chat import responses_request
from epp_plugins.tokenization.tokenized import Reason, TokenizationError, Tokenized, pack_ids

COMPLETIONS_PATH = "/v1/completions/render"
CHAT_PATH = "/v1/chat/completions/render"
CONNECTIONS = 32
KEPT_SECONDS = 90.0

MAX_ANSWER = 32 << 20
"""Bytes of an answer: some 4 million ids."""

_THREADED = 256 << 10  # bytes of an answer whose decoding would hold up others
_QUOTED = 300
_PARTS = re.compile(rb'"content"\s*+:\s*+\[')


class _Rendered(msgspec.Struct):
    token_ids: list[TokenId]
    features: Features | None = None


_ONE = msgspec.json.Decoder(_Rendered)
_MANY = msgspec.json.Decoder(list[_Rendered])


class VLLMRenderBackend:
    """A `Backend`. `model` is what the render server calls the model."""

    variant = ""

    def __init__(self, params: VLLMParams, model: str) -> None:
        self._url = params.base_url
        self._model = model
        self._timeout = seconds(params.timeout)
        self._mm_timeout = seconds(params.mm_timeout)
        self._session: aiohttp.ClientSession | None = None

    def handles(self, kind: str) -> bool:
        return kind in ("chat completions", "completions", "messages", "responses")

    def inline(self, kind: str, body: bytes) -> Tokenized | None:
        return None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEPT_SECONDS)
        # Neither proxies from the environment nor cookies: this is a server of the cluster.
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def trial(self) -> None:
        await self._post(
            COMPLETIONS_PATH, msgspec.json.encode({"model": self._model, "prompt": "warm-up"}), self._timeout
        )

    async def tokenize(self, kind: str, body: bytes, span: Any) -> Tokenized:
        timeout = self._timeout
        if kind == "completions":
            path, sent = COMPLETIONS_PATH, replace_member(body, "model", self._model, present=False)
        else:
            path = CHAT_PATH
            if _PARTS.search(body) is not None:
                timeout = self._mm_timeout
            match kind:
                case "messages":
                    sent = chat_body(messages_request(body), self._model)
                case "responses":
                    sent = chat_body(responses_request(body), self._model)
                case _:
                    sent = replace_member(body, "model", self._model, present=False)
        step = span.child(f"tokenize_render {path}") if span is not None else None
        try:
            answer = await self._post(path, sent, timeout)
        except BaseException as error:
            if step is not None:
                step.fail(error)
            raise
        finally:
            if step is not None:
                step.end()
        if len(answer) > _THREADED:
            return await asyncio.to_thread(_tokenized, path, answer)
        return _tokenized(path, answer)

    async def _post(self, path: str, body: bytes, limit: float | None) -> bytes:
        session = self._session
        if session is None:
            raise TokenizationError(Reason.FAILED, "the connection to the render server is closed")
        url = self._url + path
        try:
            async with session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=limit),
                allow_redirects=False,
            ) as response:
                answer = await _read(response)
        except TimeoutError as error:
            raise TokenizationError(Reason.FAILED, f"{url}: no answer within {limit:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TokenizationError(Reason.FAILED, f"{url}: {error or type(error).__name__}") from error
        if response.status == 200:
            return answer
        quoted = answer[:_QUOTED].decode("utf-8", "replace")
        # 400 and 422 speak of the request; anything else of the server, 403 and 404 of how it was started.
        reason = Reason.REFUSED if response.status in (400, 413, 422) else Reason.FAILED
        hint = "; start the server with --enable-scale-out" if response.status in (403, 404) else ""
        raise TokenizationError(reason, f"{url}: status {response.status}{hint}: {quoted}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MAX_ANSWER:
            raise ValueError(f"an answer of more than {MAX_ANSWER} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _tokenized(path: str, answer: bytes) -> Tokenized:
    try:
        rendered = _MANY.decode(answer) if path == COMPLETIONS_PATH else [_ONE.decode(answer)]
    except msgspec.MsgspecError as error:
        raise TokenizationError(Reason.FAILED, f"{path}: the answer cannot be read: {error}") from error
    if not rendered:
        raise TokenizationError(Reason.FAILED, f"{path}: the answer is empty")
    features = [
        feature
        for number, one in enumerate(rendered)
        if one.features is not None
        for feature in ordered_features(one.features, len(one.token_ids), number)
    ]
    return Tokenized(tuple([pack_ids(one.token_ids) for one in rendered]), tuple(features))
