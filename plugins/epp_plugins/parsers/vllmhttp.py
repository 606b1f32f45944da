"""`vllmhttp-parser`: vLLM's `/inference/v1/generate`, which takes token ids.

What it does: reads token ids, media features, model, stream flag, cache salt and `sampling_params.max_tokens`.

When to use: when prompts are tokenised before they reach the gateway, by a render step for example. It is part of the
default list of parsers.

Parameters: none. Metrics: none of its own.

Failure behaviour: a body that is not JSON, has no token ids, or has some that are not 32-bit numbers, gets 400.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from epp.api import BadRequest, MediaFeature, Payload
from epp_plugins.parsers.json_body import count_of, decode, salt_of, text_of
from epp_plugins.parsers.openai_answers import OpenAIAnswers
from epp_plugins.parsers.token_ids import TokenId
from epp_plugins.parsers.vllm_features import Features, ordered_features

GENERATE = "generate"


class _Fields(msgspec.Struct):
    model: Any = None
    stream: Any = None
    cache_salt: Any = None
    sampling_params: Any = None
    token_ids: list[TokenId] | None = None
    features: Features | None = None


_FIELDS = msgspec.json.Decoder(_Fields)


class GeneratePayload(Payload):
    """A prompt of token ids, with the places and hashes of its media."""

    __slots__ = ("_features", "_ids")

    def __init__(self, fields: _Fields, ids: list[int]) -> None:
        sampling = fields.sampling_params
        super().__init__(
            GENERATE,
            model=text_of(fields.model),
            stream=fields.stream is True,
            max_tokens=count_of(sampling.get("max_tokens")) if isinstance(sampling, dict) else None,
            cache_salt=salt_of(fields.cache_salt, GENERATE),
            rewritable=True,
        )
        self._ids = ids
        self._features = fields.features

    def token_ids(self) -> tuple[list[int], ...] | None:
        return (self._ids,)

    def media_features(self) -> tuple[MediaFeature, ...]:
        return () if self._features is None else ordered_features(self._features, len(self._ids))

    def release(self) -> None:
        self._ids = []
        self._features = None


class VLLMHTTPParser(OpenAIAnswers):
    """vLLM's token-in, token-out API."""

    type = "vllmhttp-parser"
    stability = "stable"
    paths = ("inference/v1/generate",)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        fields = decode(_FIELDS, body, GENERATE)
        if not fields.token_ids:
            raise BadRequest("invalid generate request: must have non-empty token_ids field")
        return GeneratePayload(fields, fields.token_ids)
