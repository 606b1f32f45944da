"""`epp sim`: run simulated servers until a signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence

from epp_simulator.fleet import Fleet
from epp_simulator.options import SimOptions, parse


def run(argv: Sequence[str]) -> int:
    """Exit status 2 for bad options, and for ports that cannot be had."""
    try:
        options = parse(argv)
    except ValueError as error:
        print(f"epp sim: {error}", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(options))
    except (OSError, ValueError) as error:
        print(f"epp sim: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(options: SimOptions) -> None:
    """Serve until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Fleet(options) as fleet:
        for host, port in fleet.endpoints:
            print(f"{options.names[0]} on {'https' if options.tls else 'http'}://{host}:{port}", flush=True)
        await stop.wait()
