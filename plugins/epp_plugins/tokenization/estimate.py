"""Estimated ids: the UTF-8 bytes of the text, four to an id, so a block of N ids covers 4 N bytes of text.

The ids never match those of a model; they serve those who compare prompts with each other. An image, video or audio
clip becomes a run of one id made from its hash, as long as its estimated number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import xxhash

from epp.api import MediaFeature, MediaPart, TextPart
from epp_plugins.producers.media_estimate import EstimateParams, media_tokens

MAX_MEDIA_TOKENS = 1 << 20
"""Tokens all media of a request may stand for; each one beyond counts 1. Bounds the memory of a hostile request."""


class PromptPacker:
    """Turns the prompts of one request into estimated ids and gathers the `features` of their media."""

    def __init__(self, estimate: EstimateParams, headers: Mapping[str, str]) -> None:
        self.features: list[MediaFeature] = []
        self._estimate = estimate
        self._headers = headers
        self._prompts = 0
        self._media_tokens = 0

    def pack(self, parts: Iterable[TextPart | MediaPart]) -> bytes:
        """The text of one prompt with its media on whole ids, padded with zeros to a multiple of 4 bytes."""
        pieces: list[bytes] = []
        size = 0
        for part in parts:
            if isinstance(part, str):
                piece = part.encode("utf-8", "surrogatepass")
            else:
                padding = bytes(-size & 3)
                pieces.append(padding)
                size += len(padding)
                piece = self._media(part, size >> 2)
            pieces.append(piece)
            size += len(piece)
        pieces.append(bytes(-size & 3))
        self._prompts += 1
        return b"".join(pieces)

    def _media(self, part: MediaPart, offset: int) -> bytes:
        spent = self._media_tokens >= MAX_MEDIA_TOKENS
        tokens = 1 if spent else media_tokens(part, self._estimate, self._headers)
        self._media_tokens += tokens
        digest = xxhash.xxh64_intdigest(part.content.encode("utf-8", "surrogatepass"))
        self.features.append(MediaFeature(part.modality, f"{digest:x}", offset, tokens, self._prompts))
        return (digest & 0xFFFF_FFFF).to_bytes(4, "little") * tokens
