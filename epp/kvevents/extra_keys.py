"""What an engine adds to the hash of a block besides its tokens, read into `BlockExtras`.

Two spellings exist. Tagged: `["mm", identifier, offset]`, `["cache_salt", salt]`, `["lora", name, path]`,
`["prompt_embeds", digest]`. Untagged: the LoRA name, `[identifier, offset]`, the salt and the digest of prompt
embeddings, in this order. Before 0.22 vLLM wrote a multimodal identifier as a bare string, which looks like a salt:
the salt is only ever on the first block of a prompt, and there an identifier is known by being a hex digest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from epp.kvevents.events import BlockExtras

_DIGEST = re.compile(r"[0-9a-f]{32,128}")
LONGEST = 1024  # characters of an identifier or salt: more than any engine writes


def block_extras(
    keys: Sequence[Sequence[Any] | None], *, lora_name: str, starts_prompt: bool, bare_media: bool
) -> tuple[BlockExtras | None, ...]:
    """One per block of `keys`; empty when no block has any. The LoRA name is in the event itself, so not in here.

    `starts_prompt`: the first block has no parent. `bare_media`: the release may write bare multimodal identifiers.
    """
    extras = tuple(
        _read(items, lora_name, starts_prompt and index == 0, bare_media) if items else None
        for index, items in enumerate(keys)
    )
    return extras if any(extras) else ()


def _read(items: Sequence[Any], lora_name: str, first: bool, bare_media: bool) -> BlockExtras | None:
    media: list[str] = []
    salt = ""
    for index, item in enumerate(items):
        match item:
            case str():
                if index == 0 and lora_name and item == lora_name:
                    continue
                if first and not (bare_media and _DIGEST.fullmatch(item)):
                    salt = _bounded(item)
                else:
                    media.append(_bounded(item))
            case bytes(digest) | ["prompt_embeds", bytes(digest)]:
                # Different embeddings are different blocks; no request names them, so they match nothing.
                media.append(f"prompt_embeds:{digest[:64].hex()}")
            case ["lora", *_]:
                continue
            case ["cache_salt", str(text)]:
                salt = _bounded(text)
            case ["mm", str(identifier), int()] | [str(identifier), int()] | ["mm", str(identifier)]:
                media.append(_bounded(identifier))
            case _:
                # Unknown to us, but it tells this block from others: a wrong match would be worse than none.
                media.append(f"unknown:{str(item)[:256]}")
    return BlockExtras(tuple(media), salt) if media or salt else None


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST]
