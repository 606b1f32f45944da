"""Messages as vLLM hands them to a chat template: one form of content, arguments as objects, reasoning under two names.

Which form a template takes is read from its syntax, as vLLM does: one that loops over the content of a message gets a
list of parts (`openai`), any other one a string, texts joined by a line feed (`string`).
"""

from __future__ import annotations

import json
from typing import Any, Literal

from epp_plugins.tokenization.chat import Message
from epp_plugins.tokenization.tokenized import Reason, TokenizationError

ContentFormat = Literal["string", "openai"]
_TEXTS = ("text", "input_text", "output_text", "refusal", "thinking")


def conversation(messages: list[Message], content_format: ContentFormat) -> list[Message]:
    """The messages for the template. `TokenizationError`: media, or content that servers refuse."""
    return [_message(message, content_format) for message in messages]


def _message(message: Message, content_format: ContentFormat) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        raise TokenizationError(Reason.REFUSED, "a message has no role")
    texts = _texts(message.get("content"))
    made: Message = {"role": role}
    if content_format == "string" or role == "tool":
        made["content"] = "\n".join(texts)
    else:
        made["content"] = [{"type": "text", "text": text} for text in texts]
    if role == "assistant":
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            made["tool_calls"] = [_call(call) for call in calls]
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        if reasoning is not None:
            made["reasoning"] = made["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in message:
        made["tool_call_id"] = message["tool_call_id"]
    for key in ("name", "task"):
        if isinstance(message.get(key), str):
            made[key] = message[key]
    if role == "developer":
        made["tools"] = message.get("tools")
    return made


def _texts(content: Any) -> list[str]:
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise TokenizationError(Reason.REFUSED, "the content of a message is neither text nor a list")
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXTS:
            raise TokenizationError(Reason.UNSUPPORTED, f"a message has a part of the type {kind!r}")
        text = part.get("thinking" if kind == "thinking" else "refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            texts.append(text)
    return texts


def _call(call: Any) -> Any:
    """A tool call whose arguments are an object: templates write them out themselves."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise TokenizationError(Reason.REFUSED, "a tool call has no function")
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    elif not isinstance(arguments, dict | list):
        arguments = {}
    return {**call, "function": {**function, "arguments": arguments}}
