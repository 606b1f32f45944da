"""A chat template, rendered as Hugging Face transformers renders it, in a sandbox.

The environment has transformers' settings: trimmed and left-stripped blocks, `break` and `continue`, the tag
`generation`, `tojson` that escapes nothing, `raise_exception`, `strftime_now`, and the special tokens by name. The
sandbox lets a template neither reach Python's internals nor change what it is given.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser as TemplateParser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from epp_plugins.tokenization.chat import ChatRequest
from epp_plugins.tokenization.conversation import ContentFormat, conversation
from epp_plugins.tokenization.template_syntax import loops_over_content
from epp_plugins.tokenization.tokenized import Reason, TokenizationError

_FORMATS = 16
"""Formats of dates that are remembered; no template has more."""

_RESERVED = ("messages", "chat_template", "tokenize", "tools", "documents")


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; the text inside is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 -- as Jinja wants it

    def parse(self, parser: TemplateParser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """`render(request)` gives the prompt as text.

    `special_tokens`: `bos_token` and so on. `wall_clock`: seconds since the epoch, for `strftime_now`, shown in the
    machine's time zone as on a model server. ValueError: the template does not compile.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        wall_clock: Callable[[], float],
        content_format: ContentFormat | None = None,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        self._wall_clock = wall_clock
        self._formats: list[str] = []
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = self._strftime
        try:
            self.content_format: ContentFormat = content_format or (
                "openai" if loops_over_content(environment.parse(source)) else "string"
            )
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template does not compile: {error}") from error

    @property
    def variant(self) -> str:
        """The dates that renderings show; empty when they show none."""
        if not self._formats:
            return ""
        now = self._now()
        return "\0".join([now.strftime(form) for form in self._formats])

    def render(self, request: ChatRequest) -> str:
        """The prompt. `TokenizationError`: the template refuses the conversation, or fails."""
        messages = conversation(request.messages, self.content_format)
        kwargs = {key: value for key, value in request.template_kwargs.items() if key not in _RESERVED}
        if request.reasoning_effort is not None:
            kwargs.setdefault("reasoning_effort", request.reasoning_effort)
        given = {
            **self._special_tokens,
            "add_generation_prompt": request.add_generation_prompt,
            "continue_final_message": request.continue_final_message,
            **kwargs,
            "messages": messages,
            "tools": request.tools,
            "documents": request.documents,
        }
        try:
            text = self._template.render(given)
        except Exception as error:  # whatever a template may run into: nothing of it may stop a request
            raise TokenizationError(Reason.REFUSED, f"the chat template: {type(error).__name__}: {error}") from error
        return _open_end(text, messages[-1]) if request.continue_final_message and messages else text

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._wall_clock())

    def _strftime(self, form: str) -> str:
        if form not in self._formats:
            if len(self._formats) == _FORMATS:
                raise jinja2.TemplateError("too many formats of dates")
            self._formats.append(form)
        return self._now().strftime(form)


def _open_end(text: str, message: dict[str, Any]) -> str:
    """The rendering up to the end of the last message, which the model shall continue."""
    content = message["content"]
    final = content if isinstance(content, str) else next((part["text"] for part in reversed(content)), "")
    at = text.rfind(final.strip())
    if at < 0:
        raise TokenizationError(Reason.REFUSED, "the chat template changes the message that shall be continued")
    kept = final.lstrip()
    return text[: at + len(kept)] if text[at : at + len(kept)] == kept else text[: at + len(final.strip())]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
