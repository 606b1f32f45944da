"""What render endpoints answer: the token ids and sampling parameters that the engine would get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from epp_simulator.prompts import Prompt

_SAMPLING = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
}


def rendered(identifier: str, model: str, body: Mapping[str, Any], prompt: Prompt) -> dict[str, Any]:
    """One prompt, as vLLM 0.32 shows it."""
    sampling: dict[str, Any] = {name: body.get(name, default) for name, default in _SAMPLING.items()}
    limit = next((body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name)), None)
    sampling |= {"stop": body.get("stop") or [], "stop_token_ids": [], "max_tokens": limit, "output_kind": 2}
    sampling |= {"skip_clone": True, "bad_words": [], "skip_reading_prefix_cache": False}
    return {
        "request_id": identifier,
        "token_ids": prompt.tokens,
        "token_offsets": None,
        "features": prompt.features,
        "content_parts": None,
        "sampling_params": sampling,
        "model": model,
        "reasoning_ended": None,
        "reasoning_parser_kwargs": None,
        "return_token_ids": body.get("return_token_ids"),
        "output_mode": "tokens",
        "stream": bool(body.get("stream")),
        "stream_options": body.get("stream_options"),
        "cache_salt": body.get("cache_salt"),
        "priority": body.get("priority") or 0,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
    }
