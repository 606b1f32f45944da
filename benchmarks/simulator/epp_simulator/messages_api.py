"""Anthropic's Messages API, as vLLM 0.32 writes it."""

from __future__ import annotations

from typing import Any

from epp_simulator.answers import Completion, sse
from epp_simulator.engine import Job


class MessagesFormat:
    """`/v1/messages`: one text block. `input_tokens` counts the whole prompt, cached tokens included."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion

    def whole(self) -> dict[str, Any]:
        """See `AnswerFormat`."""
        completion = self._completion
        head = self._head([{"type": "text", "text": completion.text}])
        return head | {"stop_reason": self._reason, "usage": _usage(completion.job)}

    def opening(self) -> list[bytes]:
        """Nothing."""
        return []

    def piece(self, position: int) -> list[bytes]:
        """See `AnswerFormat`."""
        job = self._completion.job
        events = []
        if position == 0:
            counts = {"input_tokens": job.prompt_tokens, "output_tokens": 0}
            message = self._head([]) | {"stop_reason": None, "stop_sequence": None, "usage": counts}
            events.append(_event("message_start", message=message))
            events.append(_event("content_block_start", content_block={"type": "text", "text": ""}, index=0))
        delta = {"type": "text_delta", "text": job.answer[position]}
        events.append(_event("content_block_delta", delta=delta, index=0))
        return events

    def closing(self) -> list[bytes]:
        """See `AnswerFormat`."""
        delta = {"stop_reason": self._reason, "stop_sequence": None}
        return [
            _event("content_block_stop", index=0),
            _event("message_delta", delta=delta, usage=_usage(self._completion.job)),
            _event("message_stop"),
        ]

    @property
    def _reason(self) -> str:
        return "max_tokens" if self._completion.reason == "length" else "end_turn"

    def _head(self, content: list[Any]) -> dict[str, Any]:
        completion = self._completion
        head = {"id": completion.identifier, "type": "message", "role": "assistant", "content": content}
        return head | {"model": completion.model}


def count(tokens: int) -> dict[str, Any]:
    """The answer of `/v1/messages/count_tokens`."""
    return {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}


def _event(kind: str, **values: Any) -> bytes:
    return sse({"type": kind} | values, kind)


def _usage(job: Job) -> dict[str, Any]:
    return {
        "input_tokens": job.prompt_tokens,
        "output_tokens": job.generated,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": job.cached_tokens,
    }
