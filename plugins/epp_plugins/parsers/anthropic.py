"""`anthropic-parser`: Anthropic's Messages API as vLLM and others serve it.

What it does: reads model, stream flag and token limit; tools, system prompt and messages only when a plugin asks.
`messages/count_tokens` is picked for, but its answer is not looked at.

When to use: when clients speak this API (Claude Code and its kin). It is part of the default list of parsers.

Parameters: none. Metrics: none of its own.

Failure behaviour: a body that is not JSON, or has no message, is refused with 400. Content of an unexpected shape is
taken as its JSON text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from epp.api import BadRequest, MediaPart, Payload, TextPart, Usage
from epp_plugins.parsers.chat_content import attempt, items, tools_part
from epp_plugins.parsers.json_body import count_of, decode, is_filled_array, is_null, raw_text, salt_of, text_of
from epp_plugins.parsers.openai_answers import OpenAIAnswers
from epp_plugins.parsers.usage import usage_in_anthropic_event

MESSAGES, COUNT_TOKENS = "messages", "count_tokens"

# A client puts a per-request billing line in front of its system prompt; servers drop it, or no prefix would repeat.
_BILLING = "x-anthropic-billing-header"


class _Source(msgspec.Struct):
    url: str | None = None
    data: str | None = None


class _Inner(msgspec.Struct):
    """A block inside a tool result."""

    type: str = ""
    text: str | None = None
    source: _Source | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    source: _Source | None = None
    content: str | list[_Inner] | None = None


class _Message(msgspec.Struct):
    role: str | None = None
    content: str | list[_Block] | None = None


class _Fields(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    cache_salt: Any = None
    system: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()


_FIELDS = msgspec.json.Decoder(_Fields)
_SYSTEM = msgspec.json.Decoder(str | list[_Inner])
_MESSAGE_LIST = msgspec.json.Decoder(list[_Message])
_MESSAGE = msgspec.json.Decoder(_Message)


class MessagesPayload(Payload):
    """A Messages request."""

    __slots__ = ("_fields",)

    def __init__(self, fields: _Fields) -> None:
        super().__init__(
            MESSAGES,
            model=text_of(fields.model),
            stream=fields.stream is True,
            max_tokens=count_of(fields.max_tokens),
            cache_salt=salt_of(fields.cache_salt, MESSAGES),
            rewritable=True,
        )
        self._fields = fields

    def parts(self) -> Iterator[list[TextPart | MediaPart]]:
        fields = self._fields
        parts = tools_part(fields.tools)
        parts += _system_parts(fields.system)
        for message in items(fields.messages, _MESSAGE_LIST, _MESSAGE):
            if isinstance(message, TextPart):
                parts.append(message)
                continue
            if message.role:
                parts.append(TextPart(message.role))
            if isinstance(message.content, str):
                parts.append(TextPart(message.content))
            else:
                for block in message.content or ():
                    parts += _block_parts(block)
        yield parts

    def release(self) -> None:
        self._fields = _Fields()


class AnthropicParser(OpenAIAnswers):
    """Messages, and counting the tokens of messages."""

    type = "anthropic-parser"
    stability = "stable"
    paths = ("messages", "messages/count_tokens")

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        fields = decode(_FIELDS, body, MESSAGES)
        if path.partition("?")[0].rstrip("/").endswith("/count_tokens"):
            return Payload(COUNT_TOKENS, model=text_of(fields.model), skip_response=True)
        if not is_filled_array(fields.messages):
            raise BadRequest("invalid messages request: must have at least one message")
        return MessagesPayload(fields)

    def stream_usage(self, payload: Payload, event: bytes) -> Usage | None:
        return usage_in_anthropic_event(event)


def _system_parts(system: msgspec.Raw) -> list[TextPart | MediaPart]:
    if is_null(system):
        return []
    content = attempt(_SYSTEM, system)
    if content is None:
        return [TextPart(raw_text(system))]
    if isinstance(content, str):
        return [TextPart(content)]
    return [
        TextPart(block.text)
        for block in content
        if block.type == "text" and block.text and not block.text.startswith(_BILLING)
    ]


def _block_parts(block: _Block) -> list[TextPart | MediaPart]:
    match block.type:
        case "text":
            return [TextPart(block.text or "")]
        case "thinking":
            return [TextPart(block.thinking or "")]
        case "image":
            return _image_parts(block.source)
        case "tool_use":
            return [TextPart((block.id or "") + (block.name or "") + raw_text(block.input))]
        case "tool_result":
            if isinstance(block.content, str):
                return [TextPart(block.content)]
            inner = block.content or ()
            parts: list[TextPart | MediaPart] = [TextPart("\n".join([b.text or "" for b in inner if b.type == "text"]))]
            for b in inner:
                if b.type == "image":
                    parts += _image_parts(b.source)
            return parts
        case _:
            return []


def _image_parts(source: _Source | None) -> list[TextPart | MediaPart]:
    content = (source.url or source.data) if source is not None else None
    return [MediaPart("image", content)] if content else []
