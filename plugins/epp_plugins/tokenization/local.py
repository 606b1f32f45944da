"""The backend `local`: the model's own tokenizer and chat template, in this process.

Bodies are rendered and tokenized in a few threads; the library lets go of the interpreter lock. Short ones are done at
once, because handing them over costs more. Media cannot be tokenized here: how many tokens stand for an image, only
the model's processor knows.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from epp.api import ConfigError
from epp_plugins.tokenization.anthropic_chat import messages_request
from epp_plugins.tokenization.chat import ChatRequest, chat_request, decoded
from epp_plugins.tokenization.params import LocalParams
from epp_plugins.tokenization.pieces import PieceTokenizer
from epp_plugins.tokenization.responses_chat import responses_request
from epp_plugins.tokenization.tokenized import Reason, TokenizationError, Tokenized

INLINE = 1024
"""Bytes of a body that is tokenized at once: about what waking a thread and being woken costs."""

_CHATS: dict[str, Callable[[bytes], ChatRequest]] = {
    "chat completions": chat_request,
    "messages": messages_request,
    "responses": responses_request,
}
COMPLETIONS = "completions"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TRIAL = ChatRequest([{"role": "user", "content": "warm-up"}])


class _Completion(msgspec.Struct):
    prompt: str | list[str]
    add_special_tokens: bool = True
    truncate_prompt_tokens: Any = None


_COMPLETION = msgspec.json.Decoder(_Completion)


class LocalBackend:
    """A `Backend`. Loading happens in `start`: ConfigError says which file is missing or wrong."""

    def __init__(self, params: LocalParams, wall_clock: Callable[[], float]) -> None:
        self._params = params
        self._wall_clock = wall_clock
        self._pool: ThreadPoolExecutor | None = None
        self._model: _Model | None = None

    @property
    def variant(self) -> str:
        template = self._model.template if self._model is not None else None
        return template.variant if template is not None else ""

    def handles(self, kind: str) -> bool:
        return kind == COMPLETIONS or kind in _CHATS

    def inline(self, kind: str, body: bytes) -> Tokenized | None:
        if len(body) > INLINE or self._model is None:
            return None
        return self._model.tokenize(kind, body)

    async def tokenize(self, kind: str, body: bytes, span: Any) -> Tokenized:
        return await self._in_pool(kind, body)

    async def start(self) -> None:
        # Its own threads would run beside ours, unbounded by `threads`. Read by the library at every call.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._pool = ThreadPoolExecutor(self._params.threads, thread_name_prefix="tokenizer")
        self._model = await asyncio.get_running_loop().run_in_executor(
            self._pool, _Model, self._params, self._wall_clock
        )

    async def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def trial(self) -> None:
        """Renders one message, so that a template that cannot work is known early, and its dates with it."""
        await self._in_pool("", b"")

    async def _in_pool(self, kind: str, body: bytes) -> Tokenized:
        if self._pool is None or self._model is None:
            raise TokenizationError(Reason.FAILED, "the tokenizer is not running")
        call = self._model.tokenize if kind else self._model.trial
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, kind, body)


class _Model:
    """What the files hold. All methods may run in any thread."""

    def __init__(self, params: LocalParams, wall_clock: Callable[[], float]) -> None:
        try:
            from epp_plugins.tokenization.chat_template import ChatTemplate
        except ImportError as error:
            raise ConfigError(
                f"token-producer: local needs a library: {error}", fix="pip install 'epp[tokenizers]'"
            ) from error
        files = _Files(Path(params.tokenizer_path))
        config = files.config()
        special = _special_tokens(config)
        source = files.template(params.chat_template, config)
        self.template: ChatTemplate | None = None
        try:
            if source is not None:
                chosen = None if params.content_format == "auto" else params.content_format
                self.template = ChatTemplate(source, special, wall_clock, chosen)
            self.tokenizer = PieceTokenizer(
                files.tokenizer(), _wanted(files.tokenizer(), source or "", special), params.prefix_cache_bytes
            )
        except ImportError as error:
            raise ConfigError(
                f"token-producer: local needs a library: {error}", fix="pip install 'epp[tokenizers]'"
            ) from error
        except ValueError as error:
            raise ConfigError(f"token-producer: {files.path}: {error}") from error

    def trial(self, kind: str, body: bytes) -> Tokenized:
        """One message rendered. A template that refuses it (it may want a system message) has worked, too."""
        if self.template is None:
            return Tokenized((self.tokenizer.encode("warm-up"),))
        try:
            return self._chat(_TRIAL)
        except TokenizationError:
            return Tokenized((self.tokenizer.encode("warm-up"),))

    def tokenize(self, kind: str, body: bytes) -> Tokenized:
        """The ids of a body. `TokenizationError`: this one has none."""
        if kind == COMPLETIONS:
            return self._completion(body)
        return self._chat(_CHATS[kind](body))

    def _completion(self, body: bytes) -> Tokenized:
        fields: _Completion = decoded(_COMPLETION, body)
        if fields.truncate_prompt_tokens is not None:
            raise TokenizationError(Reason.UNSUPPORTED, "the request asks for a truncated prompt")
        prompts = [fields.prompt] if isinstance(fields.prompt, str) else fields.prompt
        return Tokenized(tuple([self._ids(prompt, fields.add_special_tokens) for prompt in prompts]))

    def _chat(self, request: ChatRequest) -> Tokenized:
        if self.template is None:
            raise TokenizationError(Reason.UNSUPPORTED, "there is no chat template: set `chatTemplate`")
        return Tokenized((self._ids(self.template.render(request), request.add_special_tokens),))

    def _ids(self, text: str, special_tokens: bool) -> bytes:
        try:
            return self.tokenizer.encode(text, special_tokens=special_tokens)
        except UnicodeEncodeError as error:
            raise TokenizationError(Reason.REFUSED, "the text holds half a surrogate pair") from error


class _Files:
    """A tokenizer file, or the directory of a model; what belongs to it lies beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "tokenizer.json" if path.is_dir() else path
        self._source = ""

    def tokenizer(self) -> str:
        if not self._source:
            self._source = self._read(self.path, "set `tokenizerPath` to a tokenizer.json, or to a directory with one")
        return self._source

    def config(self) -> dict[str, Any]:
        beside = self.path.with_name("tokenizer_config.json")
        if not beside.is_file():
            return {}
        try:
            read = json.loads(self._read(beside, "make it readable"))
        except ValueError as error:
            raise ConfigError(f"token-producer: {beside}: no JSON: {error}") from error
        return read if isinstance(read, dict) else {}

    def template(self, given: str, config: dict[str, Any]) -> str | None:
        """`given`: a file, or the template itself. Otherwise the model's own."""
        if given:
            if "{" in given or "\n" in given:
                return given
            return self._read(Path(given), "set `chatTemplate` to a file, or to the text of a template")
        beside = self.path.with_name("chat_template.jinja")
        if beside.is_file():
            return self._read(beside, "make it readable")
        written = config.get("chat_template")
        if isinstance(written, list):  # several by name
            named = {one.get("name"): one.get("template") for one in written if isinstance(one, dict)}
            written = named.get("default")
        return written if isinstance(written, str) else None

    def _read(self, path: Path, fix: str) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"token-producer: cannot read {path}: {error}", fix=fix) from error


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` and the like, as templates see them; those that are not set are not there."""
    found: dict[str, str] = {}
    for name in _SPECIAL:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _wanted(tokenizer: str, template: str, special: dict[str, str]) -> list[str]:
    """Added tokens that prompts are made with: those in the template, and the special ones."""
    added = json.loads(tokenizer).get("added_tokens") or []
    contents = [token.get("content", "") for token in added]
    return [content for content in contents if content and (content in template or content in special.values())]
