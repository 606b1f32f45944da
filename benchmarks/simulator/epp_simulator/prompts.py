"""From request bodies to token ids: a chat template of our own, with placeholders where media stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from epp_simulator.block_hash import Medium
from epp_simulator.tokens import number, tokenize

MEDIUM_TOKENS = 64
"""Placeholder tokens of an image or other medium, whatever its size."""

_MEDIA = ("image_url", "input_image", "image", "video_url", "audio_url", "input_audio")
_PLACEHOLDER = number("<|medium|>")


class BadPromptError(ValueError):
    """A field is missing or of the wrong type; `field_name` as vLLM names it: `body.messages`."""

    def __init__(self, field_name: str, message: str = "Field required") -> None:
        super().__init__(f"1 validation error:\n  {{'type': 'missing', 'loc': '{field_name}', 'msg': '{message}'}}")
        self.field_name = field_name


@dataclass(slots=True)
class Prompt:
    """`text` is what echo mode says: the last message, or the whole prompt."""

    tokens: list[int]
    media: list[Medium] = field(default_factory=list)
    text: str = ""

    @property
    def features(self) -> dict[str, Any] | None:
        """Media as render endpoints tell them."""
        if not self.media:
            return None
        return {
            "mm_hashes": {"image": [medium.identifier for medium in self.media]},
            "mm_placeholders": {"image": [{"offset": medium.offset, "length": medium.length} for medium in self.media]},
        }


def completion_prompt(body: Mapping[str, Any]) -> Prompt:
    """`prompt`: text, token ids, or a list of texts, which is taken as one."""
    prompt = body.get("prompt")
    if not prompt:
        raise BadPromptError("body.prompt")
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return Prompt(list(prompt))
    text = prompt if isinstance(prompt, str) else "".join(map(str, prompt))
    return Prompt(tokenize(text), text=text)


def chat_prompt(body: Mapping[str, Any]) -> Prompt:
    """`messages` of chat completions."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise BadPromptError("body.messages")
    return _chat(messages, tools=body.get("tools"))


def messages_prompt(body: Mapping[str, Any]) -> Prompt:
    """Anthropic messages: the system prompt is a message of its own."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise BadPromptError("body.messages")
    system = body.get("system")
    return _chat([*([{"role": "system", "content": system}] if system else []), *messages], tools=body.get("tools"))


def responses_prompt(body: Mapping[str, Any]) -> Prompt:
    """`input` of the Responses API: text or items; `instructions` go before it."""
    given = body.get("input")
    if not given:
        raise BadPromptError("body.input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadPromptError("body.input")
    instructions = body.get("instructions")
    before = [{"role": "system", "content": instructions}] if instructions else []
    return _chat([*before, *map(_item, items)], tools=body.get("tools"))


def generate_prompt(body: Mapping[str, Any]) -> Prompt:
    """`token_ids` of `/inference/v1/generate`, with what a render endpoint said about media."""
    tokens = body.get("token_ids")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, int) for token in tokens):
        raise BadPromptError("body.token_ids")
    features = body.get("features") or {}
    media = [
        Medium(str(identifier), int(place["offset"]), int(place["length"]))
        for kind, identifiers in (features.get("mm_hashes") or {}).items()
        for identifier, place in zip(identifiers, features["mm_placeholders"][kind], strict=True)
    ]
    return Prompt(list(tokens), media)


def embedding_prompts(body: Mapping[str, Any]) -> list[Prompt]:
    """`input`: one text, one list of token ids, or a list of either."""
    given = body.get("input")
    if not given:
        raise BadPromptError("body.input")
    if isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int)):
        given = [given]
    return [completion_prompt({"prompt": item}) for item in given]


def _item(item: Mapping[str, Any]) -> Mapping[str, Any]:
    if item.get("type") in ("function_call", "function_call_output"):
        role = "assistant" if item["type"] == "function_call" else "tool"
        return {"role": role, "content": item.get("arguments") or item.get("output")}
    return item


def _chat(messages: Iterable[Mapping[str, Any]], *, tools: Any = None) -> Prompt:
    """What a chat template would make of messages: role and contents of each, and the opening of the answer."""
    prompt = Prompt(tokenize(f"<|tools|>\n{json.dumps(tools)}\n") if tools else [])
    for message in messages:
        prompt.tokens += tokenize(f"<|{message.get('role', 'user')}|>\n")
        prompt.text = _content(message.get("content"), prompt)
        if message.get("tool_calls"):
            prompt.tokens += tokenize(json.dumps(message["tool_calls"]))
        prompt.tokens += tokenize("\n")
    prompt.tokens += tokenize("<|assistant|>\n")
    return prompt


def _content(content: Any, prompt: Prompt) -> str:
    if isinstance(content, list):
        return "".join([_part(part, prompt) for part in content])
    text = "" if content is None else str(content)
    prompt.tokens += tokenize(text)
    return text


def _part(part: Any, prompt: Prompt) -> str:
    if not isinstance(part, dict):
        return _content(part, prompt)
    kind = part.get("type")
    if kind in _MEDIA or any(name in part for name in _MEDIA):
        source = next((part[name] for name in (*_MEDIA, "source") if part.get(name)), part)
        source = source.get("url") or source.get("data") or source if isinstance(source, dict) else source
        identifier = hashlib.sha256(str(source).encode(errors="replace")).hexdigest()
        prompt.media.append(Medium(identifier, len(prompt.tokens), MEDIUM_TOKENS))
        prompt.tokens += [_PLACEHOLDER] * MEDIUM_TOKENS
        return ""
    if "text" in part:
        return _content(part["text"], prompt)
    return _content(part["content"] if "content" in part else json.dumps(part), prompt)
