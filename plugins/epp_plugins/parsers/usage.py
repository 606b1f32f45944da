"""Token counts in answers: the OpenAI, Anthropic and SGLang shapes, whole answers, their tails and single events.

Counts may be numbers or strings of digits; what cannot be read is left out, for an answer must never fail over it.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from epp.api import Usage
from epp_plugins.parsers.splice import end_of_value

_T = TypeVar("_T")
_COLON_AND_BRACE = re.compile(rb"\s*+:\s*+(?=\{)")


class Counts(msgspec.Struct):
    """A `usage` object of any of the APIs."""

    prompt_tokens: Any = None
    input_tokens: Any = None
    completion_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    input_tokens_details: Any = None
    cache_read_input_tokens: Any = None


class MetaInfo(msgspec.Struct):
    """SGLang's `meta_info`. `finish_reason` is null until the last event."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    cached_tokens: Any = None
    finish_reason: Any = None


class _WithUsage(msgspec.Struct):
    usage: Counts | None = None


class _WithMetaInfo(msgspec.Struct):
    meta_info: MetaInfo | None = None


class _Event(msgspec.Struct):
    """An SSE event of OpenAI's (`usage`, or `response.usage`) or Anthropic's API (`message.usage`, `usage`)."""

    type: Any = None
    usage: Counts | None = None
    response: _WithUsage | None = None
    message: _WithUsage | None = None


_ANSWER = msgspec.json.Decoder(_WithUsage)
_COUNTS = msgspec.json.Decoder(Counts)
_EVENT = msgspec.json.Decoder(_Event)
_META_ANSWER = msgspec.json.Decoder(_WithMetaInfo)
_META = msgspec.json.Decoder(MetaInfo)
_ENDED = frozenset({"response.completed", "response.incomplete", "response.failed"})


def usage_in_answer(body: bytes) -> Usage | None:
    """The `usage` of a whole answer, or the last `"usage": {…}` in a piece of one."""
    if body[:1] == b"{":
        whole = _lenient(_ANSWER, body)
        if whole is not None:
            return _from_counts(whole.usage)
    return _from_counts(_last_object(_COUNTS, body, b'"usage"'))


def usage_in_event(event: bytes) -> Usage | None:
    """Usage in one event of OpenAI's APIs; of the Responses API only in the event that ends the response."""
    if b'"usage"' not in event:
        return None
    decoded = _lenient(_EVENT, event)
    if decoded is None:
        return None
    if decoded.usage is not None:
        return _from_counts(decoded.usage)
    if decoded.response is not None and decoded.type in _ENDED:
        return _from_counts(decoded.response.usage)
    return None


def usage_in_anthropic_event(event: bytes) -> Usage | None:
    """Prompt and cached tokens from `message_start`, output tokens (and what else is there) from `message_delta`."""
    if b'"usage"' not in event:
        return None
    decoded = _lenient(_EVENT, event)
    if decoded is None:
        return None
    if decoded.type == "message_delta":
        return _from_counts(decoded.usage)
    if decoded.type == "message_start" and decoded.message is not None:
        usage = _from_counts(decoded.message.usage)
        if usage is not None:
            # The count at the start is a placeholder; a sum with it would be taken for a total.
            usage.completion_tokens = usage.total_tokens = None
        return usage
    return None


def usage_in_meta_info(body: bytes) -> Usage | None:
    """SGLang: the `meta_info` of a whole answer, or the last one in a piece of one."""
    if body[:1] == b"{":
        whole = _lenient(_META_ANSWER, body)
        if whole is not None:
            return _from_meta_info(whole.meta_info)
    return _from_meta_info(_last_object(_META, body, b'"meta_info"'))


def usage_in_meta_info_event(event: bytes) -> Usage | None:
    """SGLang: every event carries counts so far; only those of the last one (it has a finish reason) are reported."""
    if b'"meta_info"' not in event:
        return None
    decoded = _lenient(_META_ANSWER, event)
    if decoded is None or decoded.meta_info is None or decoded.meta_info.finish_reason is None:
        return None
    return _from_meta_info(decoded.meta_info)


def _from_counts(counts: Counts | None) -> Usage | None:
    if counts is None:
        return None
    cached = counts.cache_read_input_tokens
    for details in (counts.prompt_tokens_details, counts.input_tokens_details):
        if isinstance(details, dict) and details.get("cached_tokens") is not None:
            cached = details["cached_tokens"]
    return _usage(
        counts.input_tokens if counts.prompt_tokens is None else counts.prompt_tokens,
        counts.output_tokens if counts.completion_tokens is None else counts.completion_tokens,
        cached,
        counts.total_tokens,
    )


def _from_meta_info(info: MetaInfo | None) -> Usage | None:
    return None if info is None else _usage(info.prompt_tokens, info.completion_tokens, info.cached_tokens, None)


def _usage(prompt: Any, completion: Any, cached: Any, total: Any) -> Usage | None:
    """None when nothing could be read. Without a total it is the sum, once both parts are known."""
    usage = Usage(_count(prompt), _count(completion), _count(total), _count(cached))
    if usage.prompt_tokens is None and usage.completion_tokens is None and usage.total_tokens is None:
        return None
    if usage.total_tokens is None and usage.prompt_tokens is not None and usage.completion_tokens is not None:
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
    return usage


def _count(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    if isinstance(value, str | float):
        try:
            number = int(float(value))
        except (ValueError, OverflowError):
            return None
        return number if number >= 0 else None
    return None


def _last_object(decoder: msgspec.json.Decoder[_T], body: bytes, key: bytes) -> _T | None:
    """The last member `key` whose value is a whole object. Inside a string its closing quote would be escaped."""
    before = len(body)
    while True:
        before = body.rfind(key, 0, before)
        if before < 0:
            return None
        colon = _COLON_AND_BRACE.match(body, before + len(key))
        if colon is not None:
            start = colon.end()
            try:
                return decoder.decode(memoryview(body)[start : end_of_value(body, start)])
            except (msgspec.MsgspecError, ValueError, RecursionError):  # cut off, or something else by that name
                continue


def _lenient(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T | None:
    """None for what is not JSON (cut off, an error page) or not of this shape."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
