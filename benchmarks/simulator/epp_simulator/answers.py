"""Answers of the OpenAI API as vLLM writes them: whole, and as server-sent events."""

from __future__ import annotations

import time
from typing import Any

from epp_simulator.engine import Job

FINGERPRINT = "vllm-0.32.0-simulated"


def usage(job: Job) -> dict[str, Any]:
    """Token counts, with the cached ones."""
    prompt = len(job.tokens)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + job.generated,
        "completion_tokens": job.generated,
        "prompt_tokens_details": {"cached_tokens": job.cached_tokens},
    }


def whole(kind: str, identifier: str, model: str, text: str, job: Job, reason: str) -> dict[str, Any]:
    """A complete answer; `kind` is `chat` or `text`."""
    choice: dict[str, Any] = {"index": 0}
    if kind == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    choice |= {"logprobs": None, "finish_reason": reason, "stop_reason": None}
    return {
        "id": identifier,
        "object": "chat.completion" if kind == "chat" else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "system_fingerprint": FINGERPRINT,
        "usage": usage(job),
    }


def event(kind: str, identifier: str, model: str, created: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One streamed chunk."""
    return {
        "id": identifier,
        "object": "chat.completion.chunk" if kind == "chat" else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
    }


def piece(kind: str, text: str, reason: str | None = None) -> dict[str, Any]:
    """The choice of a streamed chunk that carries text."""
    body = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return {"index": 0, **body, "logprobs": None, "finish_reason": reason}


def opening() -> dict[str, Any]:
    """The choice of a chat's first chunk: the role, before any token."""
    return {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


def error(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """vLLM's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
