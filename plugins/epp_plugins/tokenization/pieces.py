"""Tokenizes with a memory for long pieces: a system prompt that many requests share is tokenized once.

A text is cut where cutting changes nothing (`cuts.py`); the ids of a piece are kept under its text, compared in full,
so that a hit is exact. What was used longest ago is forgotten when the memory is full.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from epp_plugins.tokenization.bounded import BoundedCache
from epp_plugins.tokenization.cuts import SHORTEST, Cuts
from epp_plugins.tokenization.tokenized import pack_ids

_OVERHEAD = 200  # of the objects of an entry, without what grows


class PieceTokenizer:
    """`encode(text)`: the ids of a text, packed. Safe to call from several threads, which run side by side inside.

    `source`: the text of a `tokenizer.json`; ValueError when the library does not take it. `wanted`: added tokens that
    texts are cut at. `cache_bytes` 0: nothing is kept.
    """

    def __init__(self, source: str, wanted: Iterable[str] = (), cache_bytes: int = 0) -> None:
        from tokenizers import Tokenizer  # the extra `tokenizers`

        try:
            self._tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # the library raises Exception itself
            raise ValueError(f"no tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        parsed = json.loads(source)
        self.cuts = Cuts(parsed, wanted)
        self._around = _special_tokens(parsed)
        # What does more to a text than put tokens around it may do so to every piece.
        kept = cache_bytes if self.cuts.any and self._around is not None else 0
        self._cache: BoundedCache[str, bytes] = BoundedCache(kept)
        self._lock = threading.Lock()
        self.reused = 0
        self.made = 0

    @property
    def cached_bytes(self) -> int:
        """Memory of the pieces that are kept."""
        return self._cache.used

    def encode(self, text: str, *, special_tokens: bool = False) -> bytes:
        """Little-endian uint32 ids. `special_tokens`: with those that the tokenizer puts around a text."""
        if special_tokens and self._around is None:
            return pack_ids(self._tokenizer.encode(text, add_special_tokens=True).ids)
        before, after = self._around if special_tokens and self._around is not None else (b"", b"")
        return b"".join([before, *self._pieces(text), after])

    def _pieces(self, text: str) -> list[bytes]:
        if not self._cache.limit or len(text) < SHORTEST:
            return self._encode([text]) if text else []
        pieces = self.cuts.pieces(text)
        with self._lock:
            known = [self._cache.get(piece) for piece in pieces]
        unknown = [piece for piece, ids in zip(pieces, known, strict=True) if ids is None]
        self.reused += len(pieces) - len(unknown)
        self.made += len(unknown)
        if not unknown:
            return [ids for ids in known if ids is not None]
        made = self._encode(unknown)
        with self._lock:
            for piece, ids in zip(unknown, made, strict=True):
                if len(piece) >= SHORTEST:
                    # A text takes 1, 2 or 4 bytes a character.
                    width = 1 if piece.isascii() else 4
                    self._cache.put(piece, ids, len(piece) * width + len(ids) + _OVERHEAD)
        rest = iter(made)
        return [ids if ids is not None else next(rest) for ids in known]

    def _encode(self, texts: list[str]) -> list[bytes]:
        # Without offsets, which nobody needs: a third less work. The interpreter lock is let go inside.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [pack_ids(encoding.ids) for encoding in encodings]


def _special_tokens(tokenizer: Mapping[str, Any]) -> tuple[bytes, bytes] | None:
    """What the tokenizer puts before and behind a text; None: something that only the library can tell."""
    processor = tokenizer.get("post_processor")
    steps = [processor] if processor else []
    if processor and processor.get("type") == "Sequence":
        steps = processor.get("processors") or []
    around: tuple[list[int], list[int]] = ([], [])
    templates = 0
    for step in steps:
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") != "TemplateProcessing":
            return None
        templates += 1
        side = 0
        for part in step.get("single") or ():
            match part:
                case {"SpecialToken": {"id": str(name)}}:
                    around[side].extend(step["special_tokens"][name]["ids"])
                case {"Sequence": _} if side == 0:
                    side = 1
                case _:
                    return None
    return (pack_ids(around[0]), pack_ids(around[1])) if templates <= 1 else None
