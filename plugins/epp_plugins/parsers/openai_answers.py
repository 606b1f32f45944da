"""What parsers share whose API answers as OpenAI's do, and names the model in a member `model` of the request."""

from __future__ import annotations

from epp.api import NoParams, Parser, Payload, Usage
from epp_plugins.parsers.splice import replace_member
from epp_plugins.parsers.usage import usage_in_answer, usage_in_event


class OpenAIAnswers(Parser[NoParams]):
    """`usage` of answers and of streamed events, and the splice of another model name."""

    def usage(self, payload: Payload, body: bytes) -> Usage | None:
        return usage_in_answer(body)

    def stream_usage(self, payload: Payload, event: bytes) -> Usage | None:
        return usage_in_event(event)

    def rewrite_model(self, payload: Payload, body: bytes, model: str) -> bytes:
        return replace_member(body, "model", model, present=payload.model is not None)
