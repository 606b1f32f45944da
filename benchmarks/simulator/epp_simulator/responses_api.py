"""The Responses API, as vLLM 0.32 writes it."""

from __future__ import annotations

from typing import Any

from epp_simulator.answers import Completion, sse
from epp_simulator.engine import Job


class ResponsesFormat:
    """`/v1/responses`: one message with one text part."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion
        self._item = completion.identifier.replace("resp_", "msg_", 1)
        self._sequence = 0

    def whole(self) -> dict[str, Any]:
        """See `AnswerFormat`."""
        completion = self._completion
        cut = completion.reason == "length"
        answer = self._response("incomplete" if cut else "completed", [self._message("completed", completion.text)])
        answer["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        answer["usage"] = _usage(completion.job)
        return answer

    def opening(self) -> list[bytes]:
        """The response and where it will be, at once."""
        begun = self._response("in_progress", [])
        return [self._event("created", response=begun), self._event("in_progress", response=begun)]

    def piece(self, position: int) -> list[bytes]:
        """See `AnswerFormat`."""
        events = []
        if position == 0:
            item = self._message("in_progress", None)
            events.append(self._event("output_item.added", item=item, output_index=0))
            part = {"annotations": [], "text": "", "type": "output_text", "logprobs": []}
            events.append(self._in_part("content_part.added", part=part))
        delta = self._completion.job.answer[position]
        events.append(self._in_part("output_text.delta", delta=delta, logprobs=[]))
        return events

    def closing(self) -> list[bytes]:
        """See `AnswerFormat`."""
        text = self._completion.text
        item = self._message("completed", text)
        return [
            self._in_part("output_text.done", logprobs=[], text=text),
            self._in_part("content_part.done", part=item["content"][0]),
            self._event("output_item.done", item=item, output_index=0),
            self._event("completed", response=self.whole()),
        ]

    def _in_part(self, kind: str, **values: Any) -> bytes:
        return self._event(kind, content_index=0, item_id=self._item, output_index=0, **values)

    def _event(self, kind: str, **values: Any) -> bytes:
        name = f"response.{kind}"
        event = sse(values | {"sequence_number": self._sequence, "type": name}, name)
        self._sequence += 1
        return event

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        part: dict[str, Any] = {"annotations": [], "text": text, "type": "output_text", "logprobs": None}
        content = [] if text is None else [part]
        return {
            "id": self._item,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _response(self, status: str, output: list[Any]) -> dict[str, Any]:
        completion = self._completion
        return {
            "id": completion.identifier,
            "created_at": completion.created,
            "incomplete_details": None,
            "instructions": None,
            "metadata": None,
            "model": completion.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0,
            "background": False,
            "max_output_tokens": completion.max_tokens,
            "previous_response_id": None,
            "service_tier": "auto",
            "status": status,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "kv_transfer_params": None,
        }


def _usage(job: Job) -> dict[str, Any]:
    return {
        "input_tokens": job.prompt_tokens,
        "input_tokens_details": {"cached_tokens": job.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": job.generated,
        "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
        "total_tokens": job.prompt_tokens + job.generated,
    }
