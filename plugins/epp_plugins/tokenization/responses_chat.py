"""OpenAI's Responses input as a chat, converted as vLLM does it.

`instructions` are the system message. Items of one turn of the assistant (reasoning, text, function calls) are joined
into one message; `function_call_output` becomes a message of the role `tool`. What only the server knows cannot be
rendered here: `previous_response_id`, a stored `prompt`, tools that the server runs itself, encrypted reasoning.
"""

from __future__ import annotations

from typing import Any

import msgspec

from epp_plugins.tokenization.chat import ChatRequest, Message, decoded, tool_definition
from epp_plugins.tokenization.tokenized import Reason, TokenizationError


class _Fields(msgspec.Struct):
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: Any = None
    previous_input_messages: Any = None
    prompt: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


_FIELDS = msgspec.json.Decoder(_Fields)


def responses_request(body: bytes) -> ChatRequest:
    """The chat that a Responses body stands for. `TokenizationError` when it does not say everything itself."""
    fields = decoded(_FIELDS, body)
    for name in ("previous_response_id", "previous_input_messages", "prompt"):
        if getattr(fields, name) is not None:
            raise TokenizationError(Reason.UNSUPPORTED, f"`{name}` refers to what only the server knows")
    messages: list[Message] = []
    if fields.instructions:
        messages.append({"role": "system", "content": fields.instructions})
    if isinstance(fields.input, str):
        messages.append({"role": "user", "content": fields.input})
    else:
        for item in fields.input:
            _add(item, messages)
    effort = (fields.reasoning or {}).get("effort")
    return ChatRequest(
        messages,
        [_tool(tool) for tool in fields.tools] if fields.tools else None,
        fields.chat_template_kwargs or {},
        reasoning_effort=effort if isinstance(effort, str) else None,
    )


def _add(item: dict[str, Any], messages: list[Message]) -> None:
    last = messages[-1] if messages and messages[-1].get("role") == "assistant" else None
    kind = item.get("type", "message")
    if item.get("status") in ("in_progress", "incomplete"):
        raise TokenizationError(Reason.UNSUPPORTED, "an unfinished item is continued")
    if kind == "function_call":
        function = {"name": item.get("name", ""), "arguments": item.get("arguments", "")}
        call = {"id": item.get("call_id", ""), "type": "function", "function": function}
        if item.get("namespace"):
            raise TokenizationError(Reason.UNSUPPORTED, "a function call has a namespace")
        if last is None:
            messages.append({"role": "assistant", "tool_calls": [call]})
        else:
            last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        messages.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
    elif kind == "reasoning":
        if item.get("encrypted_content"):
            raise TokenizationError(Reason.UNSUPPORTED, "reasoning is encrypted")
        _join(last, messages, "reasoning", _first_text(item.get("content")) or _first_text(item.get("summary")))
    elif kind == "message" and item.get("role") == "assistant":
        _join(last, messages, "content", _first_text(item.get("content")))
    elif kind == "message" and isinstance(item.get("role"), str):
        messages.append({"role": item["role"], "content": item.get("content")})
    else:
        raise TokenizationError(Reason.UNSUPPORTED, f"items of the type {kind!r} are the server's own")


def _join(last: Message | None, messages: list[Message], key: str, text: str) -> None:
    """Into the assistant's message before, unless that has one already."""
    if last is not None and last.get(key) is None:
        last[key] = text
    else:
        messages.append({"role": "assistant", key: text})


def _first_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    first = content[0] if isinstance(content, list) and content else ""
    text = first.get("text", "") if isinstance(first, dict) else first
    return text if isinstance(text, str) else ""


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise TokenizationError(Reason.UNSUPPORTED, f"tools of the type {tool.get('type')!r} are the server's own")
    return tool_definition({"type": "function", "function": tool})
