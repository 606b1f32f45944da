"""What makes exact token ids: the contract between `ExactPrompts` and its backends."""

from __future__ import annotations

from typing import Any, Protocol

from epp_plugins.tokenization.tokenized import Tokenized


class Backend(Protocol):
    """Tokenizes bodies of requests. All methods run on the event loop and do not block it for long."""

    @property
    def variant(self) -> str:
        """What besides the body decides the ids, the date in a template for example; empty: nothing."""

    def handles(self, kind: str) -> bool:
        """Whether payloads of this kind can be tokenized at all."""

    def inline(self, kind: str, body: bytes) -> Tokenized | None:
        """The ids, when making them costs less than waiting for another thread. `TokenizationError`: not this one."""

    async def tokenize(self, kind: str, body: bytes, span: Any) -> Tokenized:
        """The ids. Ends by itself within the backend's own limits; `TokenizationError` when there are none."""

    async def start(self) -> None:
        """Open what is needed. An error here keeps the picker from starting."""

    async def stop(self) -> None:
        """Close it."""

    async def trial(self) -> None:
        """One small call that must work before the backend counts as warm; raises `TokenizationError`."""
