"""A tokenizer without a vocabulary: words and punctuation, numbered by hash."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

_PIECES = re.compile(r"\w{1,6}|\s+|[^\w\s]")
_VOCABULARY = 1 << 17


@lru_cache(maxsize=65536)
def _number(piece: str) -> int:
    """FNV-32a of the piece, folded into the vocabulary."""
    value = 0x811C9DC5
    for byte in piece.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value % _VOCABULARY


def tokenize(text: str) -> list[int]:
    """Ids of a text; the same text always has the same ids, and a prefix of a text has a prefix of its ids,
    but for the last piece."""
    return [_number(piece) for piece in _PIECES.findall(text)]


def chat_text(messages: Iterable[Any]) -> str:
    """What a chat template would make of messages: role and text of each, media as their URL."""
    parts = [f"<|{message.get('role', 'user')}|>\n{_content(message.get('content'))}\n" for message in messages]
    return "".join(parts) + "<|assistant|>\n"


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    return str(content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if "text" in part:
        return str(part["text"])
    for kind in ("image_url", "video_url", "audio_url", "input_audio"):
        if kind in part:
            media = part[kind]
            return f"<{kind}:{media.get('url') or media.get('data') if isinstance(media, dict) else media}>"
    return str(part)
