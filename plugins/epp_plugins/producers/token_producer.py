"""`token-producer`: the prompt as token ids, for prefix caches, context lengths and load in tokens.

What it does: sets `request.prompt`. Token ids that the client sent pass through. Text is not tokenised but estimated:
its UTF-8 bytes, four to an id, so a block of N ids covers 4 N bytes of text. The ids never match those of a model, so
the estimate serves consumers that compare prompts with each other, not those that compare with a server's KV blocks.
An image, video or audio clip becomes a run of one id made from its hash, as long as its estimated number of tokens.

When to use: it is created by itself when a plugin needs the prompt. Configure it to tune how media are counted.

Parameters: `estimate` (`image`, `video`; see `media_estimate.py`). `modelName` beside `estimate` is accepted and not
used. `vllm` and `udsTokenizerConfig`, and `modelName` alone, ask for exact tokens, which this version cannot make:
they are refused at start.

Metrics: none of its own. Failure behaviour: a request without readable text gets no prompt; a request with token ids
that are not 32-bit numbers is refused with 400.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

from epp.api import (
    TOKENIZED_PROMPT,
    DataKey,
    Endpoints,
    InferenceRequest,
    MediaFeature,
    MediaPart,
    Params,
    Producer,
    Prompt,
    TextPart,
)
from epp_plugins.producers.media_estimate import EstimateParams, media_tokens

MAX_MEDIA_TOKENS = 1 << 20
"""Tokens all media of a request may stand for; each one beyond counts 1. Bounds the memory of a hostile request."""


class TokenProducerParams(Params, frozen=True):
    """`estimate` is the only backend so far, and the default."""

    model_name: str = ""
    estimate: EstimateParams | None = None
    vllm: dict[str, Any] | None = None
    uds_tokenizer_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.vllm is not None:
            raise ValueError(_refusal("the backend `vllm`", "remove `vllm` and set `estimate: {}`"))
        if self.uds_tokenizer_config is not None:
            raise ValueError(_refusal("the backend `udsTokenizerConfig`", "remove it and set `estimate: {}`"))
        if self.model_name and self.estimate is None:
            raise ValueError(
                _refusal("`modelName` alone selects the backend `vllm`, which", "set `estimate: {}` beside it")
            )


class TokenProducer(Producer[TokenProducerParams]):
    """Sets `request.prompt` from what the parser understood."""

    type = "token-producer"
    stability = "stable"
    Params = TokenProducerParams

    @property
    def produces(self) -> Sequence[DataKey]:
        return (DataKey(TOKENIZED_PROMPT, self.name),)

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> None:
        """Nothing for opaque payloads, nor when another producer has set the prompt."""
        if request.prompt is not None:
            return
        payload = request.payload
        ids = payload.token_ids()
        if ids is not None:
            request.prompt = Prompt(
                tuple([pack_ids(prompt) for prompt in ids]), estimated=False, features=payload.media_features()
            )
            return
        packer = PromptPacker(self.params.estimate or EstimateParams(), request.headers)
        data = tuple([packer.pack(parts) for parts in payload.parts()])
        if data:
            request.prompt = Prompt(data, estimated=True, features=tuple(packer.features))


def pack_ids(ids: list[int]) -> bytes:
    """Ids as little-endian uint32. OverflowError for what does not fit; parsers let none through."""
    packed = array.array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class PromptPacker:
    """Turns the prompts of one request into estimated ids and gathers the `features` of their media."""

    def __init__(self, estimate: EstimateParams, headers: Mapping[str, str]) -> None:
        self.features: list[MediaFeature] = []
        self._estimate = estimate
        self._headers = headers
        self._prompts = 0
        self._media_tokens = 0

    def pack(self, parts: Iterable[TextPart | MediaPart]) -> bytes:
        """The text of one prompt with its media on whole ids, padded with zeros to a multiple of 4 bytes."""
        pieces: list[bytes] = []
        size = 0
        for part in parts:
            if isinstance(part, str):
                piece = part.encode("utf-8", "surrogatepass")
            else:
                padding = bytes(-size & 3)
                pieces.append(padding)
                size += len(padding)
                piece = self._media(part, size >> 2)
            pieces.append(piece)
            size += len(piece)
        pieces.append(bytes(-size & 3))
        self._prompts += 1
        return b"".join(pieces)

    def _media(self, part: MediaPart, offset: int) -> bytes:
        spent = self._media_tokens >= MAX_MEDIA_TOKENS
        tokens = 1 if spent else media_tokens(part, self._estimate, self._headers)
        self._media_tokens += tokens
        digest = xxhash.xxh64_intdigest(part.content.encode("utf-8", "surrogatepass"))
        self.features.append(MediaFeature(part.modality, f"{digest:x}", offset, tokens, self._prompts))
        return (digest & 0xFFFF_FFFF).to_bytes(4, "little") * tokens


def _refusal(what: str, fix: str) -> str:
    return f"{what} is not available in this version: {fix} to estimate tokens from the text"
