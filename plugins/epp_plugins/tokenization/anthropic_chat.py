"""Anthropic's Messages as a chat, converted as vLLM does it: what the model reads depends on every detail.

The blocks of the system prompt are joined, without the client's billing line, which changes with every request.
`tool_use` becomes a tool call with arguments as Python's `json.dumps` writes them, `tool_result` a message of the role
`tool` (its images in a user message behind it), `thinking` the reasoning of the message; `redacted_thinking` is left
out. System messages inside the conversation stay where they are.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from epp_plugins.tokenization.chat import ChatRequest, Message, decoded

BILLING = "x-anthropic-billing-header"


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    source: dict[str, Any] | None = None
    id: str | None = None
    tool_use_id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    content: str | list[dict[str, Any]] | None = None
    tool_name: str | None = None
    thinking: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class _Fields(msgspec.Struct):
    messages: list[_Message]
    system: str | list[_Block] | None = None
    tools: list[_Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_FIELDS = msgspec.json.Decoder(_Fields)


def messages_request(body: bytes) -> ChatRequest:
    """The chat that a Messages body stands for. `TokenizationError` for another shape."""
    fields = decoded(_FIELDS, body)
    messages: list[Message] = []
    if fields.system:
        text = fields.system if isinstance(fields.system, str) else _system_text(fields.system)
        messages.append({"role": "system", "content": text})
    for message in fields.messages:
        _add(message, messages)
    tools = [_tool(tool) for tool in fields.tools] if fields.tools else None
    return ChatRequest(messages, tools, fields.chat_template_kwargs or {})


def _system_text(blocks: list[_Block]) -> str:
    return "".join(
        [block.text for block in blocks if block.type == "text" and block.text and not block.text.startswith(BILLING)]
    )


def _add(message: _Message, messages: list[Message]) -> None:
    role, content = message.role, message.content
    if isinstance(content, str):
        messages.append({"role": role, "content": content})
        return
    if role == "system":
        messages.append({"role": role, "content": _system_text(content)})
        return
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning: list[str] = []
    for block in content:
        match block.type:
            case "text" if block.text:
                parts.append({"type": "text", "text": block.text})
            case "image" if block.source:
                parts.append(_image(block.source))
            case "thinking" if block.thinking is not None:
                reasoning.append(block.thinking)
            case "tool_use":
                function = {"name": block.name or "", "arguments": json.dumps(block.input or {})}
                calls.append({"id": block.id or "", "type": "function", "function": function})
            case "tool_result" if role == "user":
                messages.extend(_results(block))
            case "tool_result":
                parts.append({"type": "text", "text": f"Tool result: {block.content or ''}"})
            case _:
                continue
    made: Message = {"role": role}
    if reasoning:
        made["reasoning"] = "".join(reasoning)
    if calls:
        made["tool_calls"] = calls
    if parts:
        # One text alone is a plain string: templates that take strings only can then render it.
        made["content"] = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
    elif not calls and not reasoning:
        return
    messages.append(made)


def _results(block: _Block) -> list[Message]:
    """The message of a tool's result, and one with its images."""
    text, images = "", []
    if isinstance(block.content, str):
        text = block.content
    elif block.content:
        text = "\n".join([str(item.get("text", "")) for item in block.content if item.get("type") == "text"])
        images = [
            _image(source)
            for item in block.content
            if item.get("type") == "image" and isinstance(source := item.get("source", {}), dict)
        ]
    made: list[Message] = [{"role": "tool", "tool_call_id": block.tool_use_id or "", "content": text}]
    if images:
        made.append({"role": "user", "content": images})
    return made


def _image(source: dict[str, Any]) -> dict[str, Any]:
    if source.get("type") == "url":
        url = source.get("url", "")
    else:
        url = f"data:{source.get('media_type', 'image/jpeg')};base64,{source.get('data', '')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _tool(tool: _Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    if tool.strict is not None:
        function["strict"] = tool.strict
    if tool.defer_loading is not None:
        function["defer_loading"] = tool.defer_loading
    return {"type": "function", "function": function}
