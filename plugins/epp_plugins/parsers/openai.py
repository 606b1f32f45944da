"""`openai-parser`: OpenAI's HTTP APIs as vLLM and others serve them.

What it does: reads model, stream flag, token limit and cache salt; text, media and token ids only when a plugin asks.
Checks that the one field that each API cannot do without is there, and leaves everything else to the model server.

When to use: always, unless no traffic has these APIs. It is part of the default list of parsers.

Parameters: none. Metrics: none of its own; refusals count as errors of the request.

Failure behaviour: a body that is not JSON, or lacks the required field, is refused with 400. Content of an unexpected
shape inside a message is taken as its JSON text. A path under this parser that names no API is read as completions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from epp.api import BadRequest, MediaPart, Payload, TextPart
from epp_plugins.parsers.chat_content import Messages, attempt, chat_parts, message_parts
from epp_plugins.parsers.json_body import (
    count_of,
    decode,
    is_filled_array,
    is_filled_string,
    is_null,
    raw_text,
    salt_of,
)
from epp_plugins.parsers.openai_answers import OpenAIAnswers
from epp_plugins.parsers.token_ids import BATCH, IDS, starts_with_number

CHAT, COMPLETIONS, EMBEDDINGS = "chat completions", "completions", "embeddings"
RESPONSES, CONVERSATIONS, IMAGES = "responses", "conversations", "images generations"

_REQUIRED = {
    CHAT: "must have valid messages field",
    COMPLETIONS: "must have prompt field",
    EMBEDDINGS: "must have input field",
    RESPONSES: "must have input field",
    CONVERSATIONS: "must have items field",
    IMAGES: "must have prompt field",
}
_TEXTS = msgspec.json.Decoder(str | list[str])


class _Fields(msgspec.Struct, frozen=True):
    model: Any = None
    stream: Any = None
    cache_salt: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    items: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()


class _ChatFields(_Fields, frozen=True):
    """The same with the messages in the shape that nearly all have: read with the rest, not a second time."""

    messages: Messages = []  # type: ignore[assignment]


_FIELDS = msgspec.json.Decoder(_Fields)
_CHAT_FIELDS: msgspec.json.Decoder[_Fields] = msgspec.json.Decoder(_ChatFields)
_NOTHING = _Fields()


class OpenAIPayload(Payload):
    """A request of one of OpenAI's APIs; `kind` says which."""

    __slots__ = ("_fields",)

    def __init__(self, kind: str, fields: _Fields) -> None:
        # The fields of `Payload` one by one: its `__init__`, by keyword, would cost more than all the rest here.
        model = fields.model
        self.kind = kind
        self.model = model if isinstance(model, str) else None
        self.stream = fields.stream is True
        self.max_tokens = _max_tokens(kind, fields)
        self.cache_salt = "" if fields.cache_salt is None else salt_of(fields.cache_salt, kind)
        self.rewritable = True
        self.skip_response = False
        self._fields = fields

    def parts(self) -> Iterator[list[TextPart | MediaPart]]:
        fields = self._fields
        if self.kind == CHAT:
            if isinstance(fields, _ChatFields):
                return iter([message_parts(fields.tools, fields.messages)])
            return iter([chat_parts(fields.tools, fields.messages)])
        return self._other_parts(fields)

    def _other_parts(self, fields: _Fields) -> Iterator[list[TextPart | MediaPart]]:
        match self.kind:
            case "completions":
                texts = attempt(_TEXTS, fields.prompt)
                if texts is None:
                    texts = raw_text(fields.prompt)
                for text in [texts] if isinstance(texts, str) else texts:
                    yield [TextPart(text)]
            case "responses":
                yield [TextPart(_responses_text(fields))]
            case "conversations":
                yield [TextPart(raw_text(fields.items))]
            case "embeddings":
                yield [TextPart(raw_text(fields.input))]
            case _:  # an image model reads the prompt, but no prefix of it is worth a cache
                return

    def token_ids(self) -> tuple[list[int], ...] | None:
        if self.kind == COMPLETIONS:
            raw = self._fields.prompt
        elif self.kind == EMBEDDINGS:
            raw = self._fields.input
        else:
            return None
        if not starts_with_number(raw):
            return None
        ids = attempt(IDS, raw)
        if ids is not None:
            return (ids,)
        batch = attempt(BATCH, raw)
        if batch is None:
            raise BadRequest(f"invalid {self.kind} request: token ids must be integers from 0 to 4294967295")
        return tuple(batch)

    def release(self) -> None:
        self._fields = _NOTHING


class OpenAIParser(OpenAIAnswers):
    """Chat completions, completions, embeddings, responses, conversations, image generations, and the render paths."""

    type = "openai-parser"
    stability = "stable"
    paths = (
        "chat/completions",
        "completions",
        "embeddings",
        "responses",
        "conversations",
        "chat/completions/render",
        "completions/render",
        "images/generations",
    )

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        kind = api_of(path)
        fields = decode(_FIELDS, body, kind, _CHAT_FIELDS if kind == CHAT else None)
        if not _complete(kind, fields):
            raise BadRequest(f"invalid {kind} request: {_REQUIRED[kind]}")
        return OpenAIPayload(kind, fields)


@lru_cache(maxsize=64)
def api_of(path: str) -> str:
    """The API that a path names by its last whole segments, completions when it names none."""
    segments = path.partition("?")[0].rstrip("/").rsplit("/", 3)
    if segments[-1] == "render":
        segments.pop()
    last, before = segments[-1], segments[-2] if len(segments) > 1 else ""
    if last == "completions":
        return CHAT if before == "chat" else COMPLETIONS
    if last in (EMBEDDINGS, RESPONSES, CONVERSATIONS):
        return last
    return IMAGES if last == "generations" and before == "images" else COMPLETIONS


def _complete(kind: str, fields: _Fields) -> bool:
    match kind:
        case "chat completions":
            return bool(fields.messages) if isinstance(fields, _ChatFields) else is_filled_array(fields.messages)
        case "completions":
            return is_filled_string(fields.prompt) or is_filled_array(fields.prompt)
        case "embeddings":
            return is_filled_string(fields.input) or is_filled_array(fields.input)
        case "responses":
            return not is_null(fields.input)
        case "conversations":
            return is_filled_array(fields.items)
        case _:
            return is_filled_string(fields.prompt)


def _max_tokens(kind: str, fields: _Fields) -> int | None:
    if kind == CHAT:
        limit = count_of(fields.max_completion_tokens)
        return count_of(fields.max_tokens) if limit is None else limit
    if kind == COMPLETIONS:
        return count_of(fields.max_tokens)
    return count_of(fields.max_output_tokens) if kind == RESPONSES else None


def _responses_text(fields: _Fields) -> str:
    """One JSON array in the order in which the model reads: instructions, tools, input."""
    named = (("instructions", fields.instructions), ("tools", fields.tools), ("input", fields.input))
    return "[" + ",".join([f'{{"{name}":{raw_text(raw)}}}' for name, raw in named if not is_null(raw)]) + "]"
