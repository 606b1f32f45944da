"""Configuration errors that know their place in the file, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from epp.api.errors import ConfigError


class LocatedError(ConfigError):
    """A `ConfigError` that also knows the file (`source`) and the line, counted from 1 (0: unknown)."""

    def __init__(self, message: str, *, path: str = "", fix: str = "", source: str = "", line: int = 0) -> None:
        super().__init__(message, path=path, fix=fix)
        self.source = source
        self.line = line

    def __str__(self) -> str:
        where = f"{self.source or 'configuration'}:{self.line}: " if self.line else ""
        return where + super().__str__()


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`did you mean X?` when one of the known names is close, else the list of them; empty when there are none."""
    names = sorted(set(known))
    folded: dict[str, str] = {}
    for name in names:
        folded.setdefault(name.lower().replace("_", "").replace("-", ""), name)
    close = difflib.get_close_matches(wrong.lower().replace("_", "").replace("-", ""), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{folded[close[0]]}`?"
    if not names:
        return ""
    return f"known: {', '.join(names)}" if len(names) <= 24 else ""
