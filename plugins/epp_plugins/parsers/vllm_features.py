"""Media beside token ids, as vLLM's `/inference/v1/generate` takes and its render endpoints give them."""

from __future__ import annotations

import msgspec

from epp.api import MediaFeature


class _Placeholder(msgspec.Struct):
    offset: int
    length: int


class Features(msgspec.Struct):
    """Per modality the hashes of the media, and in the same order their places among the token ids."""

    mm_hashes: dict[str, list[str | None] | None] | None = None
    mm_placeholders: dict[str, list[_Placeholder] | None] | None = None


def ordered_features(features: Features, count: int, prompt: int = 0) -> tuple[MediaFeature, ...]:
    """Ordered by offset; a hash without a place, or a place outside the `count` ids, is left out."""
    hashes, places = features.mm_hashes or {}, features.mm_placeholders or {}
    found = [
        MediaFeature(modality, name, place.offset, place.length, prompt)
        for modality, names in hashes.items()
        for name, place in zip(names or (), places.get(modality) or (), strict=False)
        if name and place.offset >= 0 and place.length > 0 and place.offset + place.length <= count
    ]
    return tuple(sorted(found, key=lambda feature: feature.offset))
