"""Formats, levels, the queue between a record and its line, and rate limits."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator

import pytest

from epp.telemetry.logs import (
    TRACE,
    VERBOSE,
    BoundedQueueHandler,
    ConsoleFormatter,
    JsonFormatter,
    RateLimitedLog,
    log_level,
    start_logging,
)
from epp.telemetry.metrics import Counter


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("verbosity", "zap", "level"),
    [
        (0, None, logging.ERROR),
        (1, None, logging.WARNING),
        (2, None, logging.INFO),
        (3, None, VERBOSE),
        (4, "", logging.DEBUG),
        (5, None, TRACE),
        (9, None, TRACE),
        (5, "info", logging.INFO),
        (2, "DEBUG", logging.DEBUG),
        (2, "panic", logging.CRITICAL),
        (2, "5", TRACE),
    ],
)
def test_levels(verbosity: int, zap: str | None, level: int) -> None:
    assert log_level(verbosity, zap) == level


@pytest.mark.parametrize("wrong", ["loud", "0", "-1"])
def test_unknown_levels_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="none of debug, info, warn"):
        log_level(2, wrong)


def test_json_lines_with_extra_fields_and_stack_trace() -> None:
    out = io.StringIO()
    running = start_logging(encoder="json", level=VERBOSE, stream=out)
    log = logging.getLogger("epp.test")
    log.info("picked %s for\n%s", "10.0.0.1:8000", "a", extra={"request_id": "r1", "scores": {"a": 1}})
    log.log(VERBOSE, "more")
    log.debug("not shown")
    try:
        raise KeyError("x")
    except KeyError:
        log.exception("failed")
    running.stop()
    running.stop()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["info", "verbose", "error"]
    assert lines[0]["msg"] == "picked 10.0.0.1:8000 for\na"
    assert lines[0]["request_id"] == "r1"
    assert lines[0]["scores"] == {"a": 1}
    assert lines[0]["logger"] == "epp.test"
    assert lines[0]["ts"].endswith("Z")
    assert "KeyError: 'x'" in lines[2]["stacktrace"]


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("", "2026-01-02T03:04:05.500Z"),
        ("iso8601", "2026-01-02T03:04:05.500Z"),
        ("rfc3339", "2026-01-02T03:04:05Z"),
        ("rfc3339nano", "2026-01-02T03:04:05.5Z"),
        ("epoch", 1767323045.5),
        ("millis", 1767323045500.0),
        ("nano", 1767323045500000000),
    ],
)
def test_times_are_written_as_asked_for(encoding: str, written: str | float) -> None:
    record = logging.makeLogRecord({"name": "epp", "msg": "m", "created": 1767323045.5})
    assert json.loads(JsonFormatter(time_encoding=encoding).format(record))["ts"] == written
    assert ConsoleFormatter(time_encoding=encoding).format(record).startswith(f"{written}  ")
    record.created = 1767323045.0
    if encoding == "rfc3339nano":
        assert ConsoleFormatter(time_encoding=encoding).format(record).startswith("2026-01-02T03:04:05Z  ")


def test_console_lines_have_colour_on_a_terminal_only() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        running = start_logging(encoder="console", stream=stream)
        logging.getLogger("epp").warning("slow", extra={"seconds": 3})
        running.stop()
    assert "WARN   epp  slow  seconds=3\n" in plain.getvalue()
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[33mWARN" in terminal.getvalue()


def test_a_message_cannot_forge_a_second_line() -> None:
    record = logging.makeLogRecord({"msg": "name\n2026 ERROR forged\x1b[2J", "levelno": logging.INFO, "name": "x"})
    assert "\n" not in ConsoleFormatter().format(record)
    assert "\x1b" not in ConsoleFormatter().format(record)


def test_arguments_are_formatted_when_logged_not_when_written() -> None:
    handler = BoundedQueueHandler(10)
    state = ["before"]
    handler.emit(logging.makeLogRecord({"msg": "%s", "args": (state,)}))
    state[0] = "after"
    assert handler.records.get_nowait().getMessage() == "['before']"


def test_a_full_queue_drops_counts_and_tells() -> None:
    counter = Counter()
    handler = BoundedQueueHandler(2)
    handler.counter = counter
    for i in range(5):
        handler.emit(logging.makeLogRecord({"msg": f"m{i}"}))
    assert handler.dropped == 3
    assert counter.value == 3
    handler.records.get_nowait()
    handler.emit(logging.makeLogRecord({"msg": "fits"}))
    handler.records.get_nowait()
    assert vars(handler.records.get_nowait())["dropped_before"] == 3


def test_writing_happens_in_another_thread() -> None:
    class Remembering(io.StringIO):
        thread = ""

        def write(self, text: str) -> int:
            Remembering.thread = threading.current_thread().name
            return super().write(text)

    running = start_logging(stream=Remembering())
    logging.getLogger("epp").info("hello")
    running.stop()
    assert Remembering.thread != threading.current_thread().name


def test_unknown_encoder() -> None:
    with pytest.raises(ValueError, match="neither json nor console"):
        start_logging(encoder="xml")


def test_rate_limit_tells_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    limited = RateLimitedLog(logging.getLogger("epp"), lambda: now, max_keys=2)
    assert limited.warning("a", "first %d", 1)
    assert not limited.warning("a", "second")
    assert limited.error("b", "other", pod="p")
    now = 159.9
    assert not limited.warning("a", "third")
    now = 160.0
    assert limited.warning("a", "fourth")
    assert [record.getMessage() for record in caplog.records] == ["first 1", "other", "fourth"]
    assert vars(caplog.records[-1])["suppressed"] == 2
    assert vars(caplog.records[1])["pod"] == "p"


def test_rate_limit_forgets_the_oldest_key() -> None:
    limited = RateLimitedLog(logging.getLogger("epp"), lambda: 0.0, max_keys=2)
    for key in ("a", "b", "c"):
        assert limited.warning(key, "x")
    assert not limited.warning("c", "x")
    assert limited.warning("a", "x")
