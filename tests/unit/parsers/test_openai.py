from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from epp.api import BadRequest, MediaPart, Payload, TextPart, Usage
from epp_plugins.parsers.chat_content import chat_parts
from epp_plugins.parsers.openai import OpenAIParser, api_of

Captured = Callable[[str], tuple[str, bytes]]


def parse(parser: OpenAIParser, path: str, **body: Any) -> Payload:
    return parser.parse(path, {}, json.dumps(body).encode())


def texts(payload: Payload) -> list[list[str]]:
    return [[part if isinstance(part, str) else repr(part) for part in prompt] for prompt in payload.parts()]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "chat completions"),
        ("/v1/chat/completions/", "chat completions"),
        ("/v1/chat/completions?x=/v1/embeddings", "chat completions"),
        ("/v1/chat/completions/render", "chat completions"),
        ("chat/completions", "chat completions"),
        ("/v1/completions", "completions"),
        ("completions", "completions"),
        ("/v1/completions/render", "completions"),
        ("/openai/deployments/m/embeddings", "embeddings"),
        ("/v1/responses", "responses"),
        ("/v1/conversations", "conversations"),
        ("/v1/images/generations", "images generations"),
        ("/v1/mychat/completions", "completions"),
        ("/v1/myresponses", "completions"),
        ("/v1/generations", "completions"),
        ("/v1/render", "completions"),
        ("/anything", "completions"),
        ("", "completions"),
    ],
)
def test_the_api_is_named_by_whole_segments(path: str, kind: str) -> None:
    assert api_of(path) == kind


@pytest.mark.parametrize(
    ("name", "kind", "model", "stream", "max_tokens", "salt"),
    [
        ("chat_nostream", "chat completions", "tiny", False, 6, ""),
        ("chat_stream_usage", "chat completions", "tiny", True, 6, ""),
        ("chat_render_lora_salt", "chat completions", "lora-a", False, 4, "s1"),
        ("completions_lora", "completions", "lora-a", False, 3, ""),
        ("completions_tokenids", "completions", "tiny", False, 3, ""),
        ("completions_stream_usage", "completions", "tiny", True, 6, ""),
        ("responses_stream", "responses", "tiny", True, 4, ""),
    ],
)
def test_captured_requests(
    openai: OpenAIParser,
    captured: Captured,
    name: str,
    kind: str,
    model: str,
    stream: bool,
    max_tokens: int,
    salt: str,
) -> None:
    path, body = captured(name)
    payload = openai.parse(path, {}, body)
    assert (payload.kind, payload.model, payload.stream) == (kind, model, stream)
    assert (payload.max_tokens, payload.cache_salt) == (max_tokens, salt)
    assert payload.rewritable
    assert not payload.skip_response


def test_captured_bad_requests(openai: OpenAIParser, captured: Captured) -> None:
    with pytest.raises(BadRequest, match="invalid chat completions request: must have valid messages field"):
        openai.parse(*_with_headers(captured("err_400_missing_messages")))
    with pytest.raises(BadRequest, match="unexpected end of JSON input at byte 18"):
        openai.parse(*_with_headers(captured("err_400_badjson")))


def _with_headers(request: tuple[str, bytes]) -> tuple[str, dict[str, str], bytes]:
    return request[0], {}, request[1]


@pytest.mark.parametrize(
    ("path", "field", "bad", "text"),
    [
        (
            "chat/completions",
            "messages",
            [None, [], "x", {}],
            "chat completions request: must have valid messages field",
        ),
        ("completions", "prompt", [None, [], "", 5, {}], "completions request: must have prompt field"),
        ("embeddings", "input", [None, [], "", 5], "embeddings request: must have input field"),
        ("responses", "input", [None], "responses request: must have input field"),
        ("conversations", "items", [None, [], "x"], "conversations request: must have items field"),
        ("images/generations", "prompt", [None, "", ["x"]], "images generations request: must have prompt field"),
    ],
)
def test_required_fields(openai: OpenAIParser, path: str, field: str, bad: list[Any], text: str) -> None:
    for body in [{"model": "m"}, *({"model": "m", field: value} for value in bad)]:
        with pytest.raises(BadRequest) as refusal:
            parse(openai, path, **body)
        assert refusal.value.message == f"invalid {text}"


@pytest.mark.parametrize(
    ("path", "limits", "expected"),
    [
        ("chat/completions", {"max_completion_tokens": 5, "max_tokens": 7}, 5),
        ("chat/completions", {"max_completion_tokens": None, "max_tokens": 7}, 7),
        ("chat/completions", {"max_output_tokens": 7}, None),
        ("completions", {"max_completion_tokens": 5, "max_tokens": 7}, 7),
        ("completions", {"max_tokens": "many"}, None),
        ("responses", {"max_output_tokens": 9, "max_tokens": 7}, 9),
        ("embeddings", {"max_tokens": 7}, None),
        ("conversations", {"max_tokens": 7}, None),
    ],
)
def test_token_limits(openai: OpenAIParser, path: str, limits: dict[str, Any], expected: int | None) -> None:
    content = {"messages": [{}], "prompt": "p", "input": "i", "items": [{}]}
    assert parse(openai, path, **content, **limits).max_tokens == expected


@pytest.mark.parametrize("model", [None, 5, ["m"], {"name": "m"}])
def test_a_model_that_is_no_string_is_no_model(openai: OpenAIParser, model: Any) -> None:
    assert parse(openai, "completions", model=model, prompt="p").model is None


@pytest.mark.parametrize(
    ("stream", "expected"), [(True, True), (False, False), ("true", False), (1, False), (None, False)]
)
def test_stream_flag(openai: OpenAIParser, stream: Any, expected: bool) -> None:
    assert parse(openai, "completions", stream=stream, prompt="p").stream is expected


def test_chat_parts(openai: OpenAIParser) -> None:
    payload = parse(
        openai,
        "chat/completions",
        tools=[{"name": "f", "x": 1}],
        messages=[
            {"role": "system", "content": "Be\nbrief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {"type": "image_url", "image_url": {"url": "https://h/i.png", "detail": "low"}},
                    {"type": "image_url", "image_url": "https://h/j.png"},
                    {"type": "video_url", "video_url": {"url": "https://h/v.mp4"}},
                    {"type": "audio_url", "audio_url": {"url": "https://h/a.wav"}},
                    {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                    {"type": "image_url", "image_url": {}},
                    {"type": "input_audio", "input_audio": {"format": "wav"}},
                    {"type": "text"},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
            {"content": "no role"},
        ],
    )
    (parts,) = payload.parts()
    assert parts == [
        '[{"name": "f", "x": 1}]',
        "system",
        "Be\nbrief.",
        "user",
        "Look: ",
        MediaPart("image", "https://h/i.png"),
        MediaPart("image", "https://h/j.png"),
        MediaPart("video", "https://h/v.mp4"),
        MediaPart("audio", "https://h/a.wav"),
        MediaPart("audio", "UklGRg=="),
        "assistant",
        "no role",
    ]
    assert all(isinstance(part, TextPart | MediaPart) for part in parts)
    assert payload.token_ids() is None


def test_a_message_of_an_odd_shape_is_its_json(openai: OpenAIParser) -> None:
    payload = parse(openai, "chat/completions", tools=[], messages=[{"role": "user", "content": "a"}, {"role": 5}, 7])
    assert texts(payload) == [["user", "a", '{"role": 5}', "7"]]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "u"}]}],
        [{"role": "user", "content": "a"}, 7],
        [{"content": {"odd": 1}}],
        [{}],
    ],
)
def test_messages_read_with_the_body_say_what_they_say_alone(openai: OpenAIParser, messages: list[Any]) -> None:
    body = json.dumps({"messages": messages, "tools": [1]}).encode()
    alone = chat_parts(msgspec.Raw(b"[1]"), msgspec.Raw(json.dumps(messages).encode()))
    (parts,) = openai.parse("/v1/chat/completions", {}, body).parts()
    assert parts == alone
    assert list(map(type, parts)) == list(map(type, alone))


def test_the_last_of_two_messages_fields_counts(openai: OpenAIParser) -> None:
    for first, last in ((b"5", b'[{"role":"user"}]'), (b'[{"role":"system"}]', b'[{"role":"user"}]')):
        body = b'{"messages":' + first + b',"messages":' + last + b"}"
        assert texts(openai.parse("/v1/chat/completions", {}, body)) == [["user"]]
    for empty in (b"null", b"[]", b"5", b'""'):
        with pytest.raises(BadRequest, match="must have valid messages field"):
            openai.parse("/v1/chat/completions", {}, b'{"messages":[{"role":"user"}],"messages":' + empty + b"}")


def test_half_a_surrogate_pair_is_no_text(openai: OpenAIParser) -> None:
    body = b'{"messages":[{"role":"user","content":"cut \\ud83d emoji"}]}'
    with pytest.raises(BadRequest, match=r"unexpected end of hex escape at byte 49$"):
        openai.parse("/v1/chat/completions", {}, body)


def test_content_nested_beyond_the_decoder_is_its_json(openai: OpenAIParser) -> None:
    odd = "[" * 940 + "]" * 940
    payload = openai.parse(
        "/v1/chat/completions", {}, b'{"messages":[{"role":"user","content":' + odd.encode() + b"}]}"
    )
    assert texts(payload) == [[f'{{"role":"user","content":{odd}}}']]


def test_completions_parts(openai: OpenAIParser) -> None:
    assert texts(parse(openai, "completions", prompt="hi é")) == [["hi é"]]
    assert texts(parse(openai, "completions", prompt=["a", "b"])) == [["a"], ["b"]]
    assert texts(parse(openai, "completions", prompt=["a", 5])) == [['["a", 5]']]


def test_responses_parts(openai: OpenAIParser) -> None:
    payload = parse(openai, "responses", input=[{"role": "user"}], tools=[1], instructions="be")
    assert texts(payload) == [['[{"instructions":"be"},{"tools":[1]},{"input":[{"role": "user"}]}]']]
    assert texts(parse(openai, "responses", input="x", instructions=None)) == [['[{"input":"x"}]']]


def test_other_parts(openai: OpenAIParser) -> None:
    assert texts(parse(openai, "conversations", items=[{"a": 1}])) == [['[{"a": 1}]']]
    assert texts(parse(openai, "embeddings", input=["a", "b"])) == [['["a", "b"]']]
    assert texts(parse(openai, "images/generations", prompt="a cat")) == []


@pytest.mark.parametrize(
    ("path", "field", "value", "ids"),
    [
        ("completions", "prompt", [1, 2, 4294967295], ([1, 2, 4294967295],)),
        ("completions", "prompt", [[1], [2, 3]], ([1], [2, 3])),
        ("completions", "prompt", "12", None),
        ("completions", "prompt", ["12"], None),
        ("embeddings", "input", [7], ([7],)),
        ("responses", "input", [7], None),
    ],
)
def test_token_ids(openai: OpenAIParser, path: str, field: str, value: Any, ids: Any) -> None:
    assert parse(openai, path, **{field: value}).token_ids() == ids


@pytest.mark.parametrize("value", [[1, "a"], [-1], [4294967296], [1.5], [[1], 2]])
def test_bad_token_ids(openai: OpenAIParser, value: Any) -> None:
    payload = parse(openai, "completions", prompt=value)
    with pytest.raises(BadRequest, match="token ids must be integers from 0 to 4294967295"):
        payload.token_ids()


def test_release_lets_go_of_the_content(openai: OpenAIParser) -> None:
    payload = parse(openai, "completions", model="m", prompt=["text"])
    payload.release()
    assert payload.model == "m"
    assert texts(payload) == [[""]]


def test_rewrite_and_usage(openai: OpenAIParser) -> None:
    body = b'{ "model" : "a", "prompt":"p" }'
    payload = openai.parse("/v1/completions", {}, body)
    assert openai.rewrite_model(payload, body, "b") == b'{ "model" : "b", "prompt":"p" }'
    unnamed = openai.parse("/v1/completions", {}, b'{"prompt":"p"}')
    assert openai.rewrite_model(unnamed, b'{"prompt":"p"}', "b") == b'{"model":"b","prompt":"p"}'
    assert openai.usage(payload, b'{"usage":{"prompt_tokens":3}}') == Usage(3)
    assert openai.stream_usage(payload, b'{"usage":{"prompt_tokens":3}}') == Usage(3)
