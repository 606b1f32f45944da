"""A chat request as the renderers of vLLM understand it; what OpenAI's other APIs and Anthropic's are converted to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from epp_plugins.tokenization.tokenized import Reason, TokenizationError

Message = dict[str, Any]


@dataclass(slots=True)
class ChatRequest:
    """`messages` and `tools` in OpenAI's shape. The defaults are vLLM's. `template_kwargs` go to the chat template."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
    documents: list[Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False


class _Fields(msgspec.Struct):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    documents: list[Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    truncate_prompt_tokens: Any = None


_FIELDS = msgspec.json.Decoder(_Fields)


def chat_request(body: bytes) -> ChatRequest:
    """The fields of a chat completions body. `TokenizationError`: something that only the server can render."""
    fields = decoded(_FIELDS, body)
    if fields.chat_template is not None:
        raise TokenizationError(Reason.UNSUPPORTED, "the request brings its own chat template")
    if fields.truncate_prompt_tokens is not None:
        raise TokenizationError(Reason.UNSUPPORTED, "the request asks for a truncated prompt")
    return ChatRequest(
        messages=fields.messages,
        tools=[tool_definition(tool) for tool in fields.tools] if fields.tools else None,
        template_kwargs=fields.chat_template_kwargs or {},
        reasoning_effort=fields.reasoning_effort,
        documents=fields.documents,
        add_generation_prompt=fields.add_generation_prompt,
        continue_final_message=fields.continue_final_message,
        add_special_tokens=fields.add_special_tokens,
    )


def chat_body(request: ChatRequest, model: str) -> bytes:
    """A body for `/v1/chat/completions/render`."""
    body: dict[str, Any] = {"model": model, "messages": request.messages}
    if request.tools:
        body["tools"] = request.tools
    if request.template_kwargs:
        body["chat_template_kwargs"] = request.template_kwargs
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    if not request.add_generation_prompt:
        body["add_generation_prompt"] = False
    if request.continue_final_message:
        body["continue_final_message"] = True
    return msgspec.json.encode(body)


def tool_definition(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with the keys, order and nulls of vLLM's `FunctionDefinition`: templates write them into the prompt."""
    function = tool.get("function")
    if not isinstance(function, dict):
        raise TokenizationError(Reason.REFUSED, "a tool has no function")
    defined: dict[str, Any] = {
        "type": tool.get("type", "function"),
        "function": {
            "name": function.get("name"),
            "description": function.get("description"),
            "parameters": function.get("parameters"),
            **{key: function[key] for key in ("strict", "defer_loading") if function.get(key) is not None},
        },
    }
    if tool.get("defer_loading") is not None:
        defined["defer_loading"] = tool["defer_loading"]
    return defined


def decoded(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """The decoded body; `TokenizationError` when it has another shape or nests too deep."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise TokenizationError(Reason.REFUSED, f"the body has another shape: {error}") from error
