"""`epp serve`: the picker as a process. Ends with 0 after SIGTERM or SIGINT, with 1 when it cannot start."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

from epp.api.errors import ConfigError
from epp.cli.flags import FlagError, ServeOptions, parse_serve, serve_help
from epp.cli.freed_memory import keep_freed_memory
from epp.cli.serving import Picker
from epp.telemetry.logs import Logging, log_level, start_logging

log = logging.getLogger("epp")


def run(argv: list[str]) -> int:
    """2: the flags cannot be understood."""
    if any(word in ("-h", "--help", "-help") for word in argv):
        print(serve_help())
        return 0
    try:
        options, warnings = parse_serve(argv)
    except FlagError as error:
        print(f"epp serve: {error}", file=sys.stderr)
        return 2
    logs = start_logging(
        encoder=options.log_format,
        time_encoding=options.zap_time_encoding,
        level=log_level(options.verbosity, options.zap_log_level or None),
    )
    try:
        for warning in warnings:
            log.warning("%s", warning)
        keep_freed_memory(os.environ)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(serve(options, logs))
    finally:
        logs.stop()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed (half the CPU of asyncio's own), else the default."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def serve(options: ServeOptions, logs: Logging | None = None) -> int:
    """Serve until a signal; a second one ends the drain. `logs`: whose dropped lines are counted."""
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        picker = Picker(options, logging_=logs)
        starting = asyncio.ensure_future(picker.start())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        starting.result()
    except (ConfigError, FlagError, ValueError, OSError, RuntimeError) as error:
        log.error("cannot start: %s", error)
        return 1
    await stop.wait()
    draining = asyncio.ensure_future(picker.drain())
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    draining.cancel()
    hurried.cancel()
    await asyncio.gather(draining, hurried, return_exceptions=True)
    await picker.stop()
    log.info("stopped")
    return 0
