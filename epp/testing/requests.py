"""Requests as a parser would have understood them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from epp.api.request import InferenceRequest, InferenceResponse, MediaPart, Payload, Prompt, TextPart, Usage


class TextPayload(Payload):
    """A completions request with the given text as its only prompt."""

    __slots__ = ("text",)

    def __init__(self, text: str, *, model: str = "test-model", stream: bool = False, max_tokens: int | None = None):
        super().__init__("completions", model=model, stream=stream, max_tokens=max_tokens, rewritable=True)
        self.text = text

    def parts(self) -> Iterator[list[TextPart | MediaPart]]:
        """The text, as one part of one prompt."""
        return iter([[TextPart(self.text)]])


def request(
    prompt: str = "Hello",
    *,
    model: str = "test-model",
    headers: Mapping[str, str] | None = None,
    id: str = "request-1",
    path: str = "/v1/completions",
    priority: int = 0,
    stream: bool = False,
    max_tokens: int | None = None,
    received_at: float = 1000.0,
    tokenised: bool = True,
) -> InferenceRequest:
    """A parsed request. `tokenised`: `request.prompt` is set as `token-producer` does (four bytes of text a token)."""
    body = json.dumps({"model": model, "prompt": prompt, "stream": stream}).encode()
    text = prompt.encode()
    return InferenceRequest(
        id=id,
        headers={":path": path, ":method": "POST", **{name.lower(): value for name, value in (headers or {}).items()}},
        path=path,
        body=body,
        payload=TextPayload(prompt, model=model, stream=stream, max_tokens=max_tokens),
        received_at=received_at,
        model=model,
        target_model=model,
        priority=priority,
        body_size=len(body),
        prompt=Prompt((text + bytes(-len(text) % 4),), estimated=True) if tokenised else None,
    )


def response(
    status: int = 200, *, prompt_tokens: int | None = None, completion_tokens: int | None = None, served: str = ""
) -> InferenceResponse:
    """An answer as `on_response_end` sees it."""
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    return InferenceResponse(status=status, usage=usage, served=served)
