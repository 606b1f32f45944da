"""How far each endpoint's cache reaches into a prompt, from what the shared index says of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.prefixcache.precise.tiers import weight_of
from epp.prefixcache.shared.layout import holders


@dataclass(slots=True)
class Reach:
    """Contiguous blocks from the first one, and their sum by weight, best tier of each."""

    blocks: int = 0
    weighted: float = 0.0


class Walk:
    """Takes the blocks of a prompt in order. `reach` by endpoint is right after each call, for the blocks so far.

    `weights`: by tier, lower case.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.reach: dict[str, Reach] = {}
        self.blocks = 0
        self.ended = False
        self._weights = weights

    def take(self, answer: Sequence[bytes | int], asked: int) -> None:
        """The answer about the next `asked` blocks: holders and the number of blocks they hold, in turn.

        One about fewer blocks ends the walk, as nobody holds the block after them.
        """
        answered = 0
        for text, count in zip(answer[::2], answer[1::2], strict=False):
            if self.ended or not isinstance(text, bytes) or not isinstance(count, int):
                break
            self._advance(self._weights_of(text), count)
            answered += count
        self.ended = self.ended or answered < asked

    def _weights_of(self, text: bytes) -> dict[str, float]:
        best: dict[str, float] = {}
        for endpoint, tier in holders(text):
            weight = weight_of(tier, self._weights)
            best[endpoint] = max(weight, best.get(endpoint, 0.0))
        return best

    def _advance(self, holding: Mapping[str, float], blocks: int) -> None:
        going = False
        for endpoint, weight in holding.items():
            reach = self.reach.get(endpoint)
            if reach is None:
                if self.blocks:
                    continue
                reach = self.reach[endpoint] = Reach()
            if reach.blocks == self.blocks:
                reach.blocks += blocks
                reach.weighted += weight * blocks
                going = True
        self.blocks += blocks
        self.ended = not going
