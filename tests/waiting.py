"""Waiting for what announces nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], what: Callable[[], Any] = lambda: "it did not come about") -> None:
    """Until the condition holds; after half a minute an AssertionError that says `what()`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30
    while not condition():
        assert loop.time() < deadline, what()
        await asyncio.sleep(0.01)
