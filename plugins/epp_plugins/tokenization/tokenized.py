"""What a tokenizer gives back, or why it gives nothing."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from epp.api import MediaFeature

_OVERHEAD = 320  # of the objects of an entry, measured with one prompt


class Reason(StrEnum):
    """Why a request got an estimate instead of exact ids; the label `reason` of the metric."""

    UNSUPPORTED = "unsupported"
    """The request is of a kind, or has something in it, that the backend cannot render."""

    REFUSED = "refused"
    """The backend says the request is wrong; the model server will very likely say so too."""

    FAILED = "failed"
    """The backend is at fault: no connection, an error, an answer that cannot be read."""

    OVER_BUDGET = "over_budget"
    """It takes longer than the budget; the answer may still come and be kept."""

    OVERLOAD = "overload"
    """Too many prompts are being tokenized."""

    UNAVAILABLE = "unavailable"
    """The backend failed so often that it is left alone for a while, or has not warmed up."""


class TokenizationError(Exception):
    """A backend cannot tokenize this request."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Exact ids: per prompt little-endian uint32, and where media lie among them."""

    data: tuple[bytes, ...]
    features: tuple[MediaFeature, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that it occupies, about."""
        return sum(map(len, self.data)) + 200 * len(self.features) + _OVERHEAD


def pack_ids(ids: Iterable[int]) -> bytes:
    """Ids as little-endian uint32. OverflowError for what does not fit; parsers let none through."""
    packed = array.array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
