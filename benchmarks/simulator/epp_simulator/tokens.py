"""A tokenizer without a vocabulary: words with the space before them, white space and punctuation, numbered by hash."""

from __future__ import annotations

import re
from functools import lru_cache

_PIECES = re.compile(r" ?\w{1,8}|\s|[^\w\s]")
_VOCABULARY = 1 << 17


@lru_cache(maxsize=65536)
def number(piece: str) -> int:
    """FNV-32a of the piece, folded into the vocabulary."""
    value = 0x811C9DC5
    for byte in piece.encode(errors="replace"):  # JSON can carry half a surrogate pair
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value % _VOCABULARY


def pieces(text: str) -> list[str]:
    """The text, cut into what is one token each."""
    return _PIECES.findall(text)


def tokenize(text: str) -> list[int]:
    """Ids of a text; the same text always has the same ids, and a prefix of a text has a prefix of its ids,
    but for the last piece."""
    return [number(piece) for piece in pieces(text)]
