"""Chat completions, completions and `/inference/v1/generate`, as vLLM 0.32 writes them."""

from __future__ import annotations

from typing import Any

from epp_simulator.answers import FINGERPRINT, Completion, sse, usage

_DONE = b"data: [DONE]\n\n"


class ChatFormat:
    """`/v1/chat/completions`."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion

    def whole(self) -> dict[str, Any]:
        """See `AnswerFormat`."""
        completion, job = self._completion, self._completion.job
        ids = completion.return_token_ids
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.reason}
        choice |= {"stop_reason": None, "token_ids": job.answer_tokens if ids else None}
        answer = _head(completion, "chat.completion")
        answer |= {"choices": [choice], "service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage(job)}
        return answer | {"prompt_token_ids": job.prompt.tokens if ids else None, "kv_transfer_params": None}

    def opening(self) -> list[bytes]:
        """Nothing: the role comes with the first token."""
        return []

    def piece(self, position: int) -> list[bytes]:
        """See `AnswerFormat`."""
        completion, job = self._completion, self._completion.job
        ids = completion.return_token_ids
        events = []
        if position == 0:
            role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            events.append(self._event([role], prompt_token_ids=job.prompt.tokens if ids else None))
        choice: dict[str, Any] = {"index": 0, "delta": {"content": job.answer[position]}, "logprobs": None}
        choice["finish_reason"] = None
        if position == len(job.answer) - 1:
            choice |= {"finish_reason": completion.reason, "stop_reason": None}
        events.append(self._event([choice | {"token_ids": job.answer_tokens[-1:] if ids else None}]))
        return events

    def closing(self) -> list[bytes]:
        """See `AnswerFormat`."""
        return [*_usage_chunk(self._completion, "chat.completion.chunk"), _DONE]

    def _event(self, choices: list[Any], **more: Any) -> bytes:
        return _chunk(self._completion, "chat.completion.chunk", choices, **more)


class TextFormat:
    """`/v1/completions`."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion

    def whole(self) -> dict[str, Any]:
        """See `AnswerFormat`."""
        completion, job = self._completion, self._completion.job
        ids = completion.return_token_ids
        choice = {"index": 0, "text": completion.text, "logprobs": None, "finish_reason": completion.reason}
        choice |= {"stop_reason": None, "token_ids": job.answer_tokens if ids else None}
        choice |= {"prompt_logprobs": None, "prompt_token_ids": job.prompt.tokens if ids else None}
        answer = _head(completion, "text_completion")
        answer |= {"choices": [choice], "service_tier": None, "system_fingerprint": FINGERPRINT}
        return answer | {"usage": usage(job), "kv_transfer_params": None}

    def opening(self) -> list[bytes]:
        """Nothing."""
        return []

    def piece(self, position: int) -> list[bytes]:
        """See `AnswerFormat`."""
        completion, job = self._completion, self._completion.job
        ids = completion.return_token_ids
        last = position == len(job.answer) - 1
        choice = {"index": 0, "text": job.answer[position], "logprobs": None}
        choice |= {"finish_reason": completion.reason if last else None, "stop_reason": None}
        choice |= {"prompt_token_ids": job.prompt.tokens if ids and not position else None}
        choice |= {"token_ids": job.answer_tokens[-1:] if ids else None}
        return [_chunk(completion, "text_completion", [choice])]

    def closing(self) -> list[bytes]:
        """See `AnswerFormat`."""
        return [*_usage_chunk(self._completion, "text_completion"), _DONE]


class GenerateFormat:
    """`/inference/v1/generate`: token ids in, token ids out."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion

    def whole(self) -> dict[str, Any]:
        """See `AnswerFormat`."""
        completion, job = self._completion, self._completion.job
        return {
            "request_id": completion.identifier,
            "model": completion.model,
            "created": completion.created,
            "usage": usage(job),
            "kv_transfer_params": None,
            "output_mode": "tokens",
            "choices": [self._choice(job.answer_tokens, last=True)],
        }

    def opening(self) -> list[bytes]:
        """Nothing."""
        return []

    def piece(self, position: int) -> list[bytes]:
        """See `AnswerFormat`."""
        job = self._completion.job
        choice = self._choice(job.answer_tokens[-1:], last=position == len(job.answer) - 1)
        counts = usage(job) if self._completion.usage_always else None
        head = {"request_id": self._completion.identifier, "usage": counts, "output_mode": "tokens"}
        return [sse(head | {"choices": [choice]})]

    def closing(self) -> list[bytes]:
        """See `AnswerFormat`."""
        completion = self._completion
        if not completion.usage_chunk:
            return [_DONE]
        head = {"request_id": completion.identifier, "usage": usage(completion.job), "output_mode": "tokens"}
        return [sse(head | {"choices": []}), _DONE]

    def _choice(self, tokens: list[int], *, last: bool) -> dict[str, Any]:
        reason = self._completion.reason if last else None
        return {"index": 0, "finish_reason": reason, "stop_reason": None, "token_ids": tokens, "logprobs": None}


def _head(completion: Completion, kind: str) -> dict[str, Any]:
    return {"id": completion.identifier, "object": kind, "created": completion.created, "model": completion.model}


def _chunk(completion: Completion, kind: str, choices: list[Any], **more: Any) -> bytes:
    counts = {"usage": usage(completion.job)} if completion.usage_always else {}
    return sse(_head(completion, kind) | {"choices": choices} | more | counts)


def _usage_chunk(completion: Completion, kind: str) -> list[bytes]:
    if not completion.usage_chunk:
        return []
    counts = {"usage": usage(completion.job), "system_fingerprint": FINGERPRINT}
    return [sse(_head(completion, kind) | {"choices": []} | counts)]
