"""Prompts that come as token ids."""

from __future__ import annotations

from typing import Annotated

import msgspec

TokenId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
"""An id as the model servers and the block hashes hold it: 32 bits, unsigned."""

_NUMBER_STARTS = tuple(b"%c" % byte for byte in b"-0123456789")

IDS = msgspec.json.Decoder(list[TokenId])
"""One prompt."""

BATCH = msgspec.json.Decoder(list[list[TokenId]])
"""Several independent prompts."""


def starts_with_number(raw: msgspec.Raw) -> bool:
    """Whether an array's first element is a number, or an array whose first element is one."""
    head = bytes(memoryview(raw)[:256]).translate(None, b" \t\r\n")
    return head.startswith(b"[") and head.lstrip(b"[").startswith(_NUMBER_STARTS)
