"""Embeddings: unit vectors that depend on the token ids alone."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Sequence
from typing import Any

from epp_simulator.prompts import Prompt


def embeddings(
    identifier: str, model: str, created: int, prompts: Sequence[Prompt], dimensions: int, encoding: str
) -> dict[str, Any]:
    """The body of `/v1/embeddings`; `encoding` is `float` or `base64` (little-endian float32)."""
    data = []
    for index, prompt in enumerate(prompts):
        vector: Any = _vector(prompt.tokens, dimensions)
        if encoding == "base64":
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"index": index, "object": "embedding", "embedding": vector})
    tokens = sum(len(prompt.tokens) for prompt in prompts)
    counts = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return {"id": identifier, "object": "list", "created": created, "model": model, "data": data, "usage": counts}


def _vector(tokens: Sequence[int], dimensions: int) -> list[float]:
    rng = random.Random(",".join(map(str, tokens)))
    values = [rng.gauss(0, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / length for value in values]
