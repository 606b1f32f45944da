"""What all answers have in common: the request behind them, token counts, errors, server-sent events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from epp_simulator.engine import Job

FINGERPRINT = "vllm-0.32.0-simulated"


@dataclass(frozen=True, slots=True)
class Completion:
    """A request that is to be answered. `created` in seconds since the epoch.

    `max_tokens` None: the client gave no limit. `usage_chunk`, `usage_always`: of `stream_options`.
    """

    identifier: str
    model: str
    job: Job
    created: int
    stream: bool = False
    max_tokens: int | None = None
    usage_chunk: bool = False
    usage_always: bool = False
    return_token_ids: bool = False

    @property
    def reason(self) -> str:
        """OpenAI's finish reason."""
        return "length" if self.max_tokens is not None and len(self.job.answer) >= self.max_tokens else "stop"

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.job.answer)


class AnswerFormat(Protocol):
    """One API. `whole` once everything is generated; for a stream `opening` at once, `piece` per token, `closing`."""

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""

    def opening(self) -> list[bytes]:
        """Events before anything is computed."""

    def piece(self, position: int) -> list[bytes]:
        """Events of the token at `position`, which was just generated."""

    def closing(self) -> list[bytes]:
        """Events after the last token."""


def sse(data: Any, event: str = "") -> bytes:
    """A server-sent event; `event` names it, as Anthropic's and the Responses API do."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + compact(data).encode() + b"\n\n"


def compact(data: Any) -> str:
    """JSON without spaces, as vLLM writes it."""
    return json.dumps(data, separators=(",", ":"))


def usage(job: Job) -> dict[str, Any]:
    """Token counts, with the cached ones: for a prompt that another server read, those that it had."""
    cached = job.remote_cached_tokens if job.remote_tokens else job.cached_tokens
    return {
        "prompt_tokens": job.prompt_tokens,
        "total_tokens": job.prompt_tokens + job.generated,
        "completion_tokens": job.generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """vLLM's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
