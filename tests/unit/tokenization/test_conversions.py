"""Messages and Responses as chats, and chats as templates see them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from epp_plugins.tokenization.anthropic_chat import messages_request
from epp_plugins.tokenization.chat import ChatRequest, chat_body, chat_request
from epp_plugins.tokenization.conversation import conversation
from epp_plugins.tokenization.responses_chat import responses_request
from epp_plugins.tokenization.tokenized import Reason, TokenizationError


def messages(*given: dict[str, Any], **fields: Any) -> ChatRequest:
    return messages_request(json.dumps({"messages": list(given), **fields}).encode())


def responses(given: Any, **fields: Any) -> ChatRequest:
    return responses_request(json.dumps({"input": given, **fields}).encode())


def test_system_blocks_are_joined_without_the_billing_line() -> None:
    made = messages(
        {"role": "user", "content": "hi"},
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=abc;"},
            {"type": "text", "text": "You help."},
            {"type": "text", "text": " Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
    )
    assert made.messages == [{"role": "system", "content": "You help. Be brief."}, {"role": "user", "content": "hi"}]
    assert messages({"role": "user", "content": "hi"}, system="You").messages[0] == {"role": "system", "content": "You"}


def test_tool_use_and_its_result() -> None:
    made = messages(
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "First. ", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "thinking", "thinking": "Then."},
                {"type": "tool_use", "id": "c1", "name": "read", "input": {"path": "/é", "n": 1.0}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}},
                        {"type": "text", "text": "b"},
                    ],
                },
                {"type": "tool_result", "tool_use_id": "c2", "content": None},
                {"type": "text", "text": "and?"},
            ],
        },
    ).messages
    assert made[0] == {
        "role": "assistant",
        "reasoning": "First. Then.",
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "read", "arguments": '{"path": "/\\u00e9", "n": 1.0}'},
            }
        ],
    }
    assert made[1:] == [
        {"role": "tool", "tool_call_id": "c1", "content": "a\nb"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
        {"role": "tool", "tool_call_id": "c2", "content": ""},
        {"role": "user", "content": "and?"},
    ]


def test_blocks_of_messages() -> None:
    made = messages(
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "tool_addition"}]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://i"}}]},
        {"role": "system", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "assistant", "content": [{"type": "tool_result", "content": "r"}]},
    ).messages
    assert made == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://i"}}]},
        {"role": "system", "content": "xy"},
        {"role": "assistant", "content": "Tool result: r"},
    ]


def test_tools_of_messages_are_functions() -> None:
    made = messages(
        {"role": "user", "content": "hi"},
        tools=[{"name": "t", "input_schema": {"type": "object"}, "strict": True, "defer_loading": False}],
        chat_template_kwargs={"enable_thinking": False},
    )
    function = {"name": "t", "description": None, "parameters": {"type": "object"}, "strict": True}
    assert made.tools == [{"type": "function", "function": {**function, "defer_loading": False}}]
    assert made.template_kwargs == {"enable_thinking": False}


def test_responses_text_and_instructions() -> None:
    made = responses("hello", instructions="Be brief.", reasoning={"effort": "low"})
    assert made.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert made.reasoning_effort == "low"


def test_responses_items_of_a_turn_are_one_message() -> None:
    made = responses(
        [
            {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "out"},
            {"type": "function_call", "call_id": "e", "name": "h", "arguments": "{}"},
            {"role": "assistant", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}]},
        ],
        tools=[{"type": "function", "name": "f", "parameters": {}, "description": "d"}],
    )

    def call(id: str, name: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": name, "arguments": "{}"}}

    assert made.messages == [
        {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
        {"role": "assistant", "reasoning": "s", "content": "a", "tool_calls": [call("c", "f"), call("d", "g")]},
        {"role": "tool", "content": "out", "tool_call_id": "c"},
        {"role": "assistant", "tool_calls": [call("e", "h")], "content": "one"},
        {"role": "assistant", "content": "two", "reasoning": "r"},
    ]
    assert made.tools == [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]


@pytest.mark.parametrize(
    "body",
    [
        {"input": "x", "previous_response_id": "resp_1"},
        {"input": "x", "prompt": {"id": "p"}},
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"input": [{"type": "reasoning", "encrypted_content": "x"}]},
        {"input": [{"type": "computer_call"}]},
        {"input": [{"type": "message", "role": "assistant", "content": "a", "status": "incomplete"}]},
        {"input": [{"type": "function_call", "name": "f", "namespace": "n"}]},
    ],
)
def test_what_only_the_server_knows_is_unsupported(body: dict[str, Any]) -> None:
    with pytest.raises(TokenizationError) as caught:
        responses_request(json.dumps(body).encode())
    assert caught.value.reason is Reason.UNSUPPORTED


def test_a_chat_request_has_the_tools_as_vllm_writes_them() -> None:
    tool = {"function": {"parameters": {"b": 1, "a": 2}, "name": "f", "unknown": 1}, "type": "function", "x": 1}
    made = chat_request(
        json.dumps({"messages": [], "tools": [tool], "documents": [{}], "reasoning_effort": "high"}).encode()
    )
    expected = {"type": "function", "function": {"name": "f", "description": None, "parameters": {"b": 1, "a": 2}}}
    assert json.dumps(made.tools) == json.dumps([expected])
    assert made.reasoning_effort == "high"
    assert chat_request(b'{"messages": [], "tools": []}').tools is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": [], "chat_template": "{{ messages }}"}, Reason.UNSUPPORTED),
        ({"messages": [], "truncate_prompt_tokens": 3}, Reason.UNSUPPORTED),
        ({"messages": "x"}, Reason.REFUSED),
        ({"messages": [], "tools": [{"type": "function"}]}, Reason.REFUSED),
    ],
)
def test_chats_that_are_not_tokenized(body: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(TokenizationError) as caught:
        chat_request(json.dumps(body).encode())
    assert caught.value.reason is reason


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(TokenizationError):
        chat_request(b'{"messages": [{"content": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]}")


def test_a_chat_body_for_the_render_server() -> None:
    request = ChatRequest(
        [{"role": "user", "content": "é"}], [{"type": "function"}], {"k": 1}, "low", None, False, True
    )
    assert msgspec.json.decode(chat_body(request, "m")) == {
        "model": "m",
        "messages": [{"role": "user", "content": "é"}],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"k": 1},
        "reasoning_effort": "low",
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert msgspec.json.decode(chat_body(ChatRequest([]), "m")) == {"model": "m", "messages": []}


def test_content_is_a_string_or_parts() -> None:
    given = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}]},
        {"role": "user", "content": "d", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {
            "role": "tool",
            "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
            "tool_call_id": "c",
        },
        {"role": "developer", "content": "e", "tools": []},
    ]
    assert conversation(given, "string") == [
        {"role": "user", "content": "a\nb\nc"},
        {"role": "user", "content": "d", "name": "Ann"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "x\ny", "tool_call_id": "c"},
        {"role": "developer", "content": "e", "tools": []},
    ]
    parts = conversation(given, "openai")
    assert parts[0]["content"] == [{"type": "text", "text": text} for text in "abc"]
    assert parts[2]["content"] == []
    assert parts[3]["content"] == "x\ny"


def test_arguments_become_objects_and_reasoning_has_two_names() -> None:
    def called(arguments: Any) -> Any:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        made = conversation([{"role": "assistant", "tool_calls": [call], "reasoning_content": "r"}], "string")[0]
        assert made["reasoning"] == made["reasoning_content"] == "r"
        return made["tool_calls"][0]["function"]["arguments"]

    assert called('{"a": [1]}') == {"a": [1]}
    assert called("no json") == {}
    assert called(None) == {}
    assert called([1]) == [1]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}, Reason.UNSUPPORTED),
        ({"content": "x"}, Reason.REFUSED),
        ({"role": "user", "content": 5}, Reason.REFUSED),
        ({"role": "assistant", "tool_calls": ["x"]}, Reason.REFUSED),
    ],
)
def test_messages_that_are_not_rendered(message: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(TokenizationError) as caught:
        conversation([message], "string")
    assert caught.value.reason is reason
