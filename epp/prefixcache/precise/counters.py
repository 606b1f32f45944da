"""What became of the events that the index was given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What happened so far, in blocks (`conflicts`, `malformed`, `clears`, `block_sizes_refused`: events).

    Of the hashes in removals, `suppressed` took a copy of a block that stays, `forwarded` are all others.
    """

    stored: int = 0
    removed: int = 0
    moved: int = 0
    orphans: int = 0
    unknown_removals: int = 0
    conflicts: int = 0
    malformed: int = 0
    copies: int = 0
    suppressed: int = 0
    forwarded: int = 0
    clears: int = 0
    block_sizes_refused: int = 0
    expired: int = 0
