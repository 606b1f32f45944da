"""The parsers of APIs that take token ids, and the one that looks at nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from epp.api import BadRequest, MediaFeature, Usage
from epp_plugins.parsers.passthrough import PassthroughParser
from epp_plugins.parsers.sglanghttp import SGLangHTTPParser
from epp_plugins.parsers.vllmhttp import VLLMHTTPParser

Captured = Callable[[str], tuple[str, bytes]]
GENERATE = "/inference/v1/generate"


def test_vllm_captured(vllm: VLLMHTTPParser, captured: Captured) -> None:
    path, body = captured("generate_tokens_stream")
    payload = vllm.parse(path, {}, body)
    assert (payload.kind, payload.model, payload.stream, payload.max_tokens) == ("generate", "tiny", True, 4)
    assert payload.token_ids() == ([5, 6, 7, 8],)
    assert payload.media_features() == ()
    path, body = captured("generate_from_render")
    (ids,) = vllm.parse(path, {}, body).token_ids() or ()
    assert len(ids) == 26


def test_vllm_features_are_ordered_and_checked(vllm: VLLMHTTPParser) -> None:
    features = {
        "mm_hashes": {"image": ["h1", "h2", None, "h4", "h5"], "audio": ["a1"], "video": None},
        "mm_placeholders": {
            "image": [
                {"offset": 5, "length": 2},
                {"offset": 1, "length": 2},
                {"offset": 0, "length": 1},
                {"offset": 9, "length": 2},
            ],
            "audio": [{"offset": 3, "length": 1}],
        },
    }
    body = json.dumps({"token_ids": list(range(10)), "features": features, "cache_salt": "s"}).encode()
    payload = vllm.parse(GENERATE, {}, body)
    assert payload.cache_salt == "s"
    assert payload.media_features() == (
        MediaFeature("image", "h2", 1, 2),
        MediaFeature("audio", "a1", 3, 1),
        MediaFeature("image", "h1", 5, 2),
    )
    payload.release()
    assert payload.media_features() == ()
    assert payload.token_ids() == ([],)


@pytest.mark.parametrize("ids", [None, []])
def test_vllm_needs_token_ids(vllm: VLLMHTTPParser, ids: Any) -> None:
    with pytest.raises(BadRequest, match=r"^invalid generate request: must have non-empty token_ids field$"):
        vllm.parse(GENERATE, {}, json.dumps({"token_ids": ids}).encode())


@pytest.mark.parametrize("ids", [["a"], [-1], [1 << 32], "text", [[1]]])
def test_vllm_refuses_bad_token_ids(vllm: VLLMHTTPParser, ids: Any) -> None:
    with pytest.raises(BadRequest, match=r"^invalid generate request: Expected .*token_ids"):
        vllm.parse(GENERATE, {}, json.dumps({"token_ids": ids}).encode())


def test_vllm_rewrite_and_usage(vllm: VLLMHTTPParser, answer: Callable[[str], bytes]) -> None:
    body = b'{"token_ids":[1],"model":"a","sampling_params":7}'
    payload = vllm.parse(GENERATE, {}, body)
    assert payload.max_tokens is None
    assert vllm.rewrite_model(payload, body, "b") == body.replace(b'"a"', b'"b"')
    assert vllm.usage(payload, answer("generate_tokens.json")) == Usage(4, 4, 8, 0)
    assert vllm.stream_usage(payload, b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}') == Usage(1, 2, 3)


def test_sglang(sglang: SGLangHTTPParser) -> None:
    body = b'{"input_ids":[1,2,3],"extra_key":"tenant","sampling_params":{"max_new_tokens":9},"stream":true}'
    payload = sglang.parse("/generate/?x=1", {}, body)
    assert payload.token_ids() == ([1, 2, 3],)
    assert (payload.cache_salt, payload.max_tokens, payload.stream, payload.model) == ("tenant", 9, True, None)
    assert not payload.rewritable
    with pytest.raises(NotImplementedError):
        sglang.rewrite_model(payload, body, "x")
    meta = b'{"meta_info":{"prompt_tokens":3,"completion_tokens":1,"finish_reason":{}}}'
    assert sglang.usage(payload, meta) == sglang.stream_usage(payload, meta) == Usage(3, 1, 4)
    payload.release()
    assert payload.token_ids() == ([],)


@pytest.mark.parametrize("path", ["/v1/generate", "/x/generate", "/generated", "", "/generate/x"])
def test_sglang_serves_one_path(sglang: SGLangHTTPParser, path: str) -> None:
    with pytest.raises(BadRequest, match=f"^unsupported path: {path}$"):
        sglang.parse(path, {}, b'{"input_ids":[1]}')


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "invalid generate request: input_ids must be provided"),
        ({"input_ids": None, "text": "hi"}, "invalid generate request: input_ids must be provided"),
        ({"input_ids": []}, "invalid generate request: input_ids cannot be empty"),
        ({"input_ids": [[1], [2]]}, "invalid generate request: input_ids must be an array of uint32 integers"),
        ({"input_ids": ["a"]}, "invalid generate request: input_ids must be an array of uint32 integers"),
        ({"input_ids": [1], "extra_key": ["a"]}, "invalid generate request: extra_key must be a string"),
    ],
)
def test_sglang_refusals(sglang: SGLangHTTPParser, body: Any, text: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        sglang.parse("/generate", {}, json.dumps(body).encode())
    assert refusal.value.message == text


def test_passthrough_looks_at_nothing(passthrough: PassthroughParser) -> None:
    payload = passthrough.parse("/any", {}, b"\xff not JSON")
    assert (payload.kind, payload.model, payload.rewritable) == ("opaque", None, False)
    assert list(payload.parts()) == []
    assert payload.token_ids() is None
    payload.release()
    assert passthrough.usage(payload, b'{"usage":{"prompt_tokens":1}}') is None
    assert passthrough.stream_usage(payload, b'{"usage":{"prompt_tokens":1}}') is None
