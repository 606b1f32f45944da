"""Waiting for what announces nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it did not come about") -> None:
    """Until the condition holds; after ten seconds an AssertionError that says `what()`."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what())
