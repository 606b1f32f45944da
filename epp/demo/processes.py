"""How a process that we started comes to its end."""

from __future__ import annotations

import asyncio
import signal


async def end(process: asyncio.subprocess.Process, seconds: float) -> None:
    """SIGTERM, and SIGKILL after `seconds`; a process that has ended already is left alone."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
