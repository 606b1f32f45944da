"""`sglanghttp-parser`: SGLang's own `/generate` with token ids.

What it does: reads `input_ids` (one prompt), `extra_key` as the cache salt, `sampling_params.max_new_tokens` and the
stream flag; usage from `meta_info`. The API names no model, so none is reported or rewritten.

When to use: in front of SGLang when clients send tokens. It is not in the default list of parsers; configure it beside
`vllmhttp-parser` at will: the longer `inference/v1/generate` wins there.

Parameters: none. Metrics: none of its own.

Failure behaviour: 400 for any path but `/generate`, for text prompts and for batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from epp.api import BadRequest, NoParams, Parser, Payload, Usage
from epp_plugins.parsers.chat_content import attempt
from epp_plugins.parsers.json_body import count_of, decode, is_null, salt_of
from epp_plugins.parsers.token_ids import IDS
from epp_plugins.parsers.usage import usage_in_meta_info, usage_in_meta_info_event

GENERATE = "generate"


class _Fields(msgspec.Struct):
    stream: Any = None
    extra_key: Any = None
    sampling_params: Any = None
    input_ids: msgspec.Raw = msgspec.Raw()


_FIELDS = msgspec.json.Decoder(_Fields)


class SGLangPayload(Payload):
    """A prompt of token ids."""

    __slots__ = ("_ids",)

    def __init__(self, fields: _Fields, ids: list[int]) -> None:
        sampling = fields.sampling_params
        super().__init__(
            GENERATE,
            stream=fields.stream is True,
            max_tokens=count_of(sampling.get("max_new_tokens")) if isinstance(sampling, dict) else None,
            cache_salt=salt_of(fields.extra_key, GENERATE, "extra_key"),
        )
        self._ids = ids

    def token_ids(self) -> tuple[list[int], ...] | None:
        return (self._ids,)

    def release(self) -> None:
        self._ids = []


class SGLangHTTPParser(Parser[NoParams]):
    """SGLang's native API."""

    type = "sglanghttp-parser"
    stability = "stable"
    paths = ("generate",)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        bare = path.partition("?")[0].strip().rstrip("/")
        if bare not in ("/generate", "generate"):
            raise BadRequest(f"unsupported path: {bare}")
        fields = decode(_FIELDS, body, GENERATE)
        if is_null(fields.input_ids):
            raise BadRequest("invalid generate request: input_ids must be provided")
        ids = attempt(IDS, fields.input_ids)
        if ids is None:
            raise BadRequest("invalid generate request: input_ids must be an array of uint32 integers")
        if not ids:
            raise BadRequest("invalid generate request: input_ids cannot be empty")
        return SGLangPayload(fields, ids)

    def usage(self, payload: Payload, body: bytes) -> Usage | None:
        return usage_in_meta_info(body)

    def stream_usage(self, payload: Payload, event: bytes) -> Usage | None:
        return usage_in_meta_info_event(event)
