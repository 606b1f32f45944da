"""Logs: JSON lines or readable lines, written by a thread of their own, and never more often than is useful.

A record is queued and formatted elsewhere, so a slow terminal or pipe holds up no request; when the queue is full the
record is dropped and counted, and the next one that fits tells how many.
"""

from __future__ import annotations

import copy
import json
import logging
import logging.handlers
import queue
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from epp.telemetry.metrics import Counter

VERBOSE = 15
"""Level of `-v 3`: between DEBUG and INFO."""

TRACE = 5
"""Level of `-v 5`."""

_NAMES = {VERBOSE: "verbose", TRACE: "trace", logging.WARNING: "warn", logging.CRITICAL: "error"}
_COLOURS = {"error": "31", "warn": "33", "info": "36", "verbose": "34", "debug": "35", "trace": "90"}
_QUEUE = 10_000  # records; a burst of a second at any rate that a person could read later
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def log_level(verbosity: int = 2, zap_log_level: str | None = None) -> int:
    """The level for `-v N` (1 warn, 2 info, 3 verbose, 4 debug, 5 trace); `--zap-log-level` overrides it.

    `zap_log_level`: `debug`, `info`, `warn`, `error`, `panic`, or an integer above 0, which counts as `-v`.
    """
    if zap_log_level:
        named = {
            "debug": logging.DEBUG,
            "info": logging.INFO,
            "warn": logging.WARNING,
            "error": logging.ERROR,
            "panic": logging.CRITICAL,
        }.get(zap_log_level.lower())
        if named is not None:
            return named
        if not zap_log_level.isdecimal() or int(zap_log_level) < 1:
            raise ValueError(
                f"--zap-log-level: {zap_log_level!r} is none of debug, info, warn, error, panic or a number above 0"
            )
        verbosity = int(zap_log_level)
    levels = {0: logging.ERROR, 1: logging.WARNING, 2: logging.INFO, 3: VERBOSE, 4: logging.DEBUG}
    return levels.get(max(verbosity, 0), TRACE)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `level`, `ts`, `logger`, `msg`, what was passed as `extra`, and `stacktrace`.

    `time_encoding` as in `timestamp`.
    """

    def __init__(self, *, time_encoding: str = "") -> None:
        super().__init__()
        self._time_encoding = time_encoding

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "level": level_name(record.levelno),
            "ts": timestamp(record.created, self._time_encoding),
            "logger": record.name,
            "msg": record.getMessage(),
            **_extra(record),
        }
        if record.exc_text:
            entry["stacktrace"] = record.exc_text
        return json.dumps(entry, default=str, ensure_ascii=False)


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger, message and `extra` as `key=value`; coloured when asked for.

    `time_encoding` as in `timestamp`.
    """

    def __init__(self, *, colour: bool = False, time_encoding: str = "") -> None:
        super().__init__()
        self._colour = colour
        self._time_encoding = time_encoding

    def format(self, record: logging.LogRecord) -> str:
        level = level_name(record.levelno)
        shown = level.upper().ljust(7)
        if self._colour:
            shown = f"\x1b[{_COLOURS[level]}m{shown}\x1b[0m"
        extra = "".join(f"  {key}={value!s}" for key, value in _extra(record).items())
        # A message may quote what a client sent: one record stays one line.
        text = record.getMessage().replace("\n", "\\n").replace("\r", "\\r").replace("\x1b", "\\x1b")
        line = f"{timestamp(record.created, self._time_encoding)}  {shown}{record.name}  {text}{extra}"
        return f"{line}\n{record.exc_text}" if record.exc_text else line


class BoundedQueueHandler(logging.handlers.QueueHandler):
    """Queues records; drops and counts them when the queue is full."""

    def __init__(self, size: int = _QUEUE) -> None:
        self.records: queue.Queue[logging.LogRecord] = queue.Queue(size)
        super().__init__(self.records)
        self.dropped = 0
        self._untold = 0
        self.counter: Counter | None = None

    def count_in(self, counter: Counter) -> None:
        """Count there what is dropped from now on, and what has been so far."""
        counter.inc(self.dropped)
        self.counter = counter

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Freeze what may change before the record is written: the arguments and the exception."""
        record = copy.copy(record)
        record.msg = record.getMessage()
        record.args = None
        if record.exc_info:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put the record into the queue without waiting."""
        if self._untold:
            record.dropped_before = self._untold
        try:
            self.records.put_nowait(record)
            self._untold = 0
        except queue.Full:
            self.dropped += 1
            self._untold += 1
            if self.counter is not None:
                self.counter.inc()


class Logging:
    """The running log of the process: `stop` writes what is still queued."""

    def __init__(self, handler: BoundedQueueHandler, listener: logging.handlers.QueueListener) -> None:
        self.handler = handler
        self._listener: logging.handlers.QueueListener | None = listener
        listener.start()

    def stop(self) -> None:
        """Write what is queued and end the thread. A second call does nothing."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        logging.getLogger().removeHandler(self.handler)


def start_logging(
    *,
    encoder: str = "console",
    time_encoding: str = "",
    level: int = logging.INFO,
    stream: TextIO | None = None,
    queue_size: int = _QUEUE,
) -> Logging:
    """Send the records of all loggers to `stream` (default: standard error), from `level` on.

    `encoder`: `json` or `console` (the zap encoders); `time_encoding` as in `timestamp`.
    """
    out = sys.stderr if stream is None else stream
    target = logging.StreamHandler(out)
    if encoder == "json":
        target.setFormatter(JsonFormatter(time_encoding=time_encoding))
    elif encoder == "console":
        target.setFormatter(ConsoleFormatter(colour=out.isatty(), time_encoding=time_encoding))
    else:
        raise ValueError(f"--zap-encoder: {encoder!r} is neither json nor console")
    handler = BoundedQueueHandler(queue_size)
    root = logging.getLogger()
    root.setLevel(level)
    root.addHandler(handler)
    # Libraries speak of every connection at info; what they warn of is of interest.
    for noisy in ("aiohttp.access", "asyncio", "opentelemetry", "grpc"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))
    return Logging(handler, logging.handlers.QueueListener(handler.records, target))


class RateLimitedLog:
    """Logs each `key` at most once in `every` seconds; the next line of that key tells how many were left out.

    At most `max_keys` keys are remembered; the one logged longest ago is forgotten first.
    """

    def __init__(
        self, log: logging.Logger, clock: Callable[[], float], *, every: float = 60.0, max_keys: int = 1000
    ) -> None:
        self._log = log
        self._clock = clock
        self._every = every
        self._max_keys = max_keys
        self._keys: dict[str, tuple[float, int]] = {}

    def log(
        self, level: int, key: str, message: str, *args: object, error: BaseException | None = None, **extra: object
    ) -> bool:
        """Log, or count as left out; True when it was logged. `error` adds its traceback."""
        now = self._clock()
        known = self._keys.get(key)
        if known is not None and now - known[0] < self._every:
            self._keys[key] = (known[0], known[1] + 1)
            return False
        self._keys.pop(key, None)
        if len(self._keys) >= self._max_keys:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = (now, 0)
        if known is not None and known[1]:
            extra["suppressed"] = known[1]
        self._log.log(level, message, *args, exc_info=error, extra=extra)
        return True

    def warning(self, key: str, message: str, *args: object, **extra: Any) -> bool:
        """`log` at level warning."""
        return self.log(logging.WARNING, key, message, *args, **extra)

    def error(self, key: str, message: str, *args: object, **extra: Any) -> bool:
        """`log` at level error."""
        return self.log(logging.ERROR, key, message, *args, **extra)


def level_name(level: int) -> str:
    """`error`, `warn`, `info`, `verbose`, `debug` or `trace`."""
    return _NAMES.get(level) or logging.getLevelName(level).lower()


def timestamp(created: float, encoding: str = "") -> str | float:
    """Seconds since 1970 as `--zap-time-encoding` has them.

    `epoch` (seconds), `millis`, `nano`: numbers. `rfc3339`, `rfc3339nano` (with as much of a fraction as there is),
    `iso8601` and empty (both with milliseconds): UTC.
    """
    if encoding == "epoch":
        return created
    if encoding == "millis":
        return created * 1e3
    if encoding == "nano":
        return round(created * 1e6) * 1000  # the clock of a log record tells microseconds
    moment = datetime.fromtimestamp(created, UTC).replace(tzinfo=None)
    if encoding == "rfc3339":
        return moment.isoformat(timespec="seconds") + "Z"
    if encoding == "rfc3339nano":
        text = moment.isoformat(timespec="microseconds")
        return text.rstrip("0").rstrip(".") + "Z"
    return moment.isoformat(timespec="milliseconds") + "Z"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
