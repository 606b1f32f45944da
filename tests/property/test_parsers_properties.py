"""Parsers over any JSON and any bytes: they answer or refuse, and never anything else."""

from __future__ import annotations

import json
import logging
import random
import struct
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from epp.api import BadRequest, EndpointTable, InferenceRequest, NoParams, Parser, Payload, PluginContext
from epp_plugins.parsers import nesting
from epp_plugins.parsers.anthropic import AnthropicParser
from epp_plugins.parsers.openai import OpenAIParser
from epp_plugins.parsers.sglanghttp import SGLangHTTPParser
from epp_plugins.parsers.vllmhttp import VLLMHTTPParser
from epp_plugins.producers.token_producer import TokenProducer

_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/conversations",
    "/v1/images/generations",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/inference/v1/generate",
    "/generate",
)


def _find(name: str) -> Any:
    raise LookupError(name)


_CONTEXT = PluginContext("p", lambda: 0.0, random.Random(0), logging.getLogger("test"), EndpointTable(), _find)
_OPENAI = OpenAIParser(NoParams(), _CONTEXT)
_PARSERS: list[Parser[Any]] = [
    _OPENAI,
    AnthropicParser(NoParams(), _CONTEXT),
    VLLMHTTPParser(NoParams(), _CONTEXT),
    SGLangHTTPParser(NoParams(), _CONTEXT),
]
_TOKENS = TokenProducer(TokenProducer.Params(), _CONTEXT)

_quick = settings(deadline=None)
_text = st.text(st.characters(codec="utf-8"), max_size=30)
_KEYS = """model stream messages prompt input items tools instructions system max_tokens cache_salt token_ids input_ids
features sampling_params extra_key role content type text image_url usage"""
_keys = st.sampled_from(_KEYS.split())
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3), max_leaves=6
)
_bodies = st.dictionaries(_keys, _values, max_size=5)


def _exercise(parser: Parser[Any], path: str, body: bytes) -> Payload | None:
    """Everything a request does with a parser; None when it is refused."""
    request = None
    try:
        payload = parser.parse(path, {}, body)
        request = InferenceRequest(id="r", headers={}, path=path, body=body, payload=payload, received_at=0.0)
        _TOKENS.produce(request, _CONTEXT.table.all(0.0))
    except BadRequest:
        return None
    assert payload.model is None or isinstance(payload.model, str)
    assert payload.max_tokens is None or payload.max_tokens >= 0
    if request.prompt is not None:
        assert all(len(data) % 4 == 0 for data in request.prompt.data)
    return payload


@_quick
@given(_bodies, st.sampled_from(_PATHS))
def test_any_object_is_understood_or_refused(body: dict[str, Any], path: str) -> None:
    encoded = json.dumps(body).encode()
    for parser in _PARSERS:
        _exercise(parser, path, encoded)


@_quick
@given(st.binary(max_size=200), st.sampled_from(_PATHS))
@example(b'{"model":"\xed\xa0\x80"}', "/v1/completions")
def test_any_bytes_are_understood_or_refused(body: bytes, path: str) -> None:
    for parser in _PARSERS:
        _exercise(parser, path, body)


@_quick
@given(st.binary(max_size=200))
def test_usage_never_fails(body: bytes) -> None:
    payload = Payload()
    for parser in _PARSERS:
        for piece in (body, b'{"usage":' + body, b'"usage":{' + body, b'{"meta_info":' + body):
            parser.usage(payload, piece)
            parser.stream_usage(payload, piece)


@_quick
@given(st.lists(_text, min_size=1, max_size=4).filter(any))
def test_prompts_come_back_from_their_estimate(texts: list[str]) -> None:
    body = json.dumps({"prompt": texts}).encode()
    request = InferenceRequest("r", {}, "/", body, _OPENAI.parse("/v1/completions", {}, body), 0.0)
    _TOKENS.produce(request, _CONTEXT.table.all(0.0))
    assert request.prompt is not None
    assert [data.rstrip(b"\0") for data in request.prompt.data] == [text.encode().rstrip(b"\0") for text in texts]


@_quick
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_token_ids_round_trip(ids: list[int]) -> None:
    body = json.dumps({"prompt": ids}).encode()
    request = InferenceRequest("r", {}, "/", body, _OPENAI.parse("/v1/completions", {}, body), 0.0)
    _TOKENS.produce(request, _CONTEXT.table.all(0.0))
    assert request.prompt is not None
    assert request.prompt.data == (struct.pack(f"<{len(ids)}I", *ids),)


def _walk(body: bytes, limit: int) -> int | None:
    """Depth byte by byte."""
    depth = 0
    in_string = escaped = False
    for at, byte in enumerate(body):
        if byte in b"[{]}" and not in_string:
            depth += 1 if byte in b"[{" else -1
            if depth > limit:
                return at
        if escaped:
            escaped = False
        elif byte == 0x5C:
            escaped = True
        elif byte == 0x22:
            in_string = not in_string
    return None


@_quick
@given(
    st.lists(st.sampled_from([b'"', b"\\", b"[", b"]", b"{", b"}", b"a", b"\\\\", b'\\"', b"\\" * 9]), max_size=60),
    st.integers(0, 4),
    st.sampled_from([1, 2, 3, 7, 1000]),
)
def test_depth_is_what_a_walk_finds(pieces: list[bytes], limit: int, chunk: int) -> None:
    body = b" " * 5 + b"".join(pieces)
    whole, small = nesting._CHUNK, nesting._SMALL
    nesting._CHUNK, nesting._SMALL = chunk, 0
    try:
        assert nesting.exceeds_depth(body, limit) == _walk(body, limit)
    finally:
        nesting._CHUNK, nesting._SMALL = whole, small
