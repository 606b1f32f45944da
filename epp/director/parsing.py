"""Which parser reads a request: by its path, in whole segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from epp.api.errors import BadRequest
from epp.api.plugin import Parser

_ORIGINAL_PATHS = ("x-original-path", "x-forwarded-path")
_COMPLETIONS = "/v1/completions"
_MOST_KNOWN = 64
_LONGEST_KNOWN = 128


class ParserTable:
    """The configured parsers, in the order of the configuration.

    The longest configured suffix of the path wins, compared in whole segments (`/x/mycompletions` is not
    `completions`); of two parsers with the same suffix the first. A parser without paths is the fallback for everything
    else, and parsers behind it are never asked. Of several parsers of one type the first counts.
    """

    def __init__(self, parsers: Iterable[Parser[Any]]) -> None:
        self.parsers: list[Parser[Any]] = []
        self.fallback: Parser[Any] | None = None
        self._by_suffix: dict[str, Parser[Any]] = {}
        self._known: dict[str, Parser[Any]] = {}  # paths that have been resolved by their suffix: nearly all are few
        types: set[str] = set()
        for parser in parsers:
            if parser.type in types:
                continue
            types.add(parser.type)
            self.parsers.append(parser)
            if not parser.paths:
                self.fallback = parser
                break
            for suffix in parser.paths:
                self._by_suffix.setdefault(suffix.strip("/"), parser)
        self._segments = max((suffix.count("/") + 1 for suffix in self._by_suffix), default=0)

    def resolve(self, path: str, headers: Mapping[str, str], body: bytes) -> Parser[Any]:
        """The parser for a request; `BadRequest` when none matches and there is no fallback.

        Query and trailing slash do not count. `path` empty: `request_path` finds out.
        """
        parser = self._known.get(path)
        if parser is not None:
            return parser
        bare = request_path(path, headers, body).partition("?")[0].strip().rstrip("/")
        segments = bare.rsplit("/", self._segments)[-self._segments :] if self._segments else []
        for first in range(len(segments)):
            parser = self._by_suffix.get("/".join(segments[first:]))
            if parser is not None:
                if path and len(path) <= _LONGEST_KNOWN and len(self._known) < _MOST_KNOWN:
                    self._known[path] = parser
                return parser
        if self.fallback is not None:
            return self.fallback
        raise BadRequest(f"no parser registered matching path suffix for: {bare}")


def request_path(path: str, headers: Mapping[str, str], body: bytes) -> str:
    """The path as the client sent it: `:path`, else the headers some gateways keep it in, else what the body implies.

    NGINX Gateway Fabric sends no `:path`. A body that implies nothing is taken for completions, as upstream does.
    """
    if path:
        return path
    path = headers.get(":path", "")
    if path:
        return path
    for name in _ORIGINAL_PATHS:
        path = headers.get(name, "")
        if path:
            return path
    return _implied_path(headers, body)


class _Shape(msgspec.Struct):
    """The fields that tell the APIs apart."""

    messages: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    items: msgspec.Raw = msgspec.Raw()
    token_ids: msgspec.Raw = msgspec.Raw()
    input_ids: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()
    store: msgspec.Raw = msgspec.Raw()
    reasoning: msgspec.Raw = msgspec.Raw()
    temperature: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()
    previous_response_id: msgspec.Raw = msgspec.Raw()


_SHAPE = msgspec.json.Decoder(_Shape)


def _implied_path(headers: Mapping[str, str], body: bytes) -> str:
    try:
        shape = _SHAPE.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _COMPLETIONS  # its parser refuses the body with a reason and an offset
    if _given(shape.messages):
        anthropic = "anthropic-version" in headers or _given(shape.system)
        return "/v1/messages" if anthropic else "/v1/chat/completions"
    if _given(shape.prompt):
        return _COMPLETIONS
    if _given(shape.input):
        return "/v1/responses" if _generates(shape) else "/v1/embeddings"
    if _given(shape.items):
        return "/v1/conversations"
    if _given(shape.token_ids):
        return "/inference/v1/generate"
    return "/generate" if _given(shape.input_ids) else _COMPLETIONS


def _generates(shape: _Shape) -> bool:
    """Responses and embeddings both have `input`: only the former has items in it, or settings of a generation."""
    items = bytes(memoryview(shape.input)[:64]).translate(None, b" \t\r\n").startswith(b"[{")
    return items or any(
        _given(field)
        for field in (
            shape.instructions,
            shape.tools,
            shape.stream,
            shape.store,
            shape.reasoning,
            shape.temperature,
            shape.max_output_tokens,
            shape.previous_response_id,
        )
    )


def _given(field: msgspec.Raw) -> bool:
    return len(memoryview(field)) > 0
