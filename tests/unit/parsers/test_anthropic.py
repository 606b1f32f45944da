from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from epp.api import BadRequest, MediaPart, Payload, Usage
from epp_plugins.parsers.anthropic import AnthropicParser

Captured = Callable[[str], tuple[str, bytes]]


def parse(parser: AnthropicParser, path: str = "/v1/messages", **body: Any) -> Payload:
    return parser.parse(path, {}, json.dumps(body).encode())


def test_captured_requests(anthropic: AnthropicParser, captured: Captured) -> None:
    path, body = captured("messages_stream")
    payload = anthropic.parse(path, {}, body)
    assert (payload.kind, payload.model, payload.stream, payload.max_tokens) == ("messages", "tiny", True, 4)
    assert payload.rewritable
    assert list(payload.parts()) == [["user", "hello"]]


def test_counting_tokens_is_not_looked_at(anthropic: AnthropicParser, captured: Captured) -> None:
    path, body = captured("messages_count_tokens")
    payload = anthropic.parse(path + "/?beta=true", {}, body)
    assert payload.skip_response
    assert not payload.rewritable
    assert payload.model == "tiny"
    assert list(payload.parts()) == []
    with pytest.raises(BadRequest, match="at byte 1"):
        anthropic.parse(path, {}, b"{")


@pytest.mark.parametrize("messages", [None, [], "x", {}])
def test_messages_are_required(anthropic: AnthropicParser, messages: Any) -> None:
    with pytest.raises(BadRequest, match=r"^invalid messages request: must have at least one message$"):
        parse(anthropic, messages=messages)


def test_parts_in_reading_order(anthropic: AnthropicParser) -> None:
    payload = parse(
        anthropic,
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "yes"},
                    {"type": "tool_use", "id": "t1", "name": "ls", "input": {"dir": "/"}},
                    {"type": "redacted_thinking", "data": "x"},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "plain"},
                    {
                        "type": "tool_result",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image", "source": {"type": "base64", "data": "QUJD"}},
                            {"type": "text", "text": "b"},
                        ],
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://h/i.png"}},
                    {"type": "image", "source": {"type": "file", "file_id": "f"}},
                    {"type": "image"},
                ],
            },
        ],
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1"},
            {"type": "text", "text": "You are", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[{"name": "ls"}],
    )
    assert list(payload.parts()) == [
        [
            '[{"name": "ls"}]',
            "You are",
            "user",
            "hi",
            "assistant",
            "hm",
            "yes",
            't1ls{"dir": "/"}',
            "user",
            "plain",
            "a\nb",
            MediaPart("image", "QUJD"),
            MediaPart("image", "https://h/i.png"),
        ]
    ]


@pytest.mark.parametrize(("system", "text"), [("be", ["be"]), (None, []), ({"a": 1}, ['{"a": 1}'])])
def test_system(anthropic: AnthropicParser, system: Any, text: list[str]) -> None:
    payload = parse(anthropic, system=system, messages=[{"role": "user", "content": "x"}])
    assert list(payload.parts()) == [[*text, "user", "x"]]


def test_odd_messages_are_their_json(anthropic: AnthropicParser) -> None:
    payload = parse(anthropic, messages=[{"role": "user", "content": 5}, {"role": "user"}])
    assert list(payload.parts()) == [['{"role": "user", "content": 5}', "user"]]


def test_rewrite_usage_and_release(anthropic: AnthropicParser) -> None:
    body = b'{"messages":[{"role":"user","content":"x"}],"model":"a"}'
    payload = anthropic.parse("/v1/messages", {}, body)
    assert anthropic.rewrite_model(payload, body, "b") == body.replace(b'"a"', b'"b"')
    answer = b'{"usage":{"input_tokens":3,"output_tokens":2,"cache_read_input_tokens":1}}'
    assert anthropic.usage(payload, answer) == Usage(3, 2, 5, 1)
    assert anthropic.stream_usage(payload, b'{"type":"message_delta","usage":{"output_tokens":2}}') == Usage(None, 2)
    payload.release()
    assert list(payload.parts()) != [["user", "x"]]
