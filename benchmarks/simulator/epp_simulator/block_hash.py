"""The chain of block hashes of one request: each depends on all tokens before it, and on what else tells it apart."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from epp_simulator.kv_events import ExtraKey


@dataclass(frozen=True, slots=True)
class Medium:
    """An image or other medium: `length` placeholder tokens from `offset` on stand for `identifier`."""

    identifier: str
    offset: int
    length: int


@dataclass(slots=True)
class BlockChain:
    """Tokens of a request, prompt and answer so far, and the digests and extra keys of its full blocks.

    `lora` empty: the base model.
    """

    tokens: list[int]
    lora: str = ""
    cache_salt: str = ""
    media: Sequence[Medium] = ()
    session: str | None = None
    digests: list[bytes] = field(default_factory=list)
    extras: list[tuple[ExtraKey, ...]] = field(default_factory=list)


class BlockHasher:
    """SHA-256 over parent, tokens and extra keys. Its own recipe: nobody may depend on an engine's hashes.

    `seed` makes two servers hash differently, as engines with another PYTHONHASHSEED do.
    """

    def __init__(self, block_size: int, seed: str = "") -> None:
        self.block_size = block_size
        self._root = hashlib.sha256(b"epp-simulator\0" + seed.encode()).digest()

    def extend(self, chain: BlockChain) -> None:
        """Hash the full blocks that are not hashed yet."""
        size = self.block_size
        parent = chain.digests[-1] if chain.digests else self._root
        for start in range(len(chain.digests) * size, len(chain.tokens) - size + 1, size):
            extras = self._extras(chain, start)
            block = array("Q", chain.tokens[start : start + size]).tobytes()
            parent = hashlib.sha256(parent + block + (msgspec.msgpack.encode(extras) if extras else b"")).digest()
            chain.digests.append(parent)
            chain.extras.append(extras)

    def _extras(self, chain: BlockChain, start: int) -> tuple[ExtraKey, ...]:
        # The order in which vLLM appends them.
        keys: list[ExtraKey] = [("lora", chain.lora)] if chain.lora else []
        end = start + self.block_size
        keys += [
            ("mm", medium.identifier, medium.offset - start)
            for medium in chain.media
            if medium.offset < end and medium.offset + medium.length > start
        ]
        if chain.cache_salt and start == 0:
            keys.append(("cache_salt", chain.cache_salt))
        return tuple(keys)
