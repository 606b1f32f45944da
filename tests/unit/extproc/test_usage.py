"""Usage is found wherever the chunks are cut, and what has none is not handed on."""

from __future__ import annotations

from epp.extproc.usage import AnswerUsage, EventUsage

EVENTS = (
    b'data: {"choices":[{"text":"\\"usage\\""}],"usage":null}\n\n'
    b'data: {"choices":[],"usage": null,"n":1}\r\n\r\n'
    b": ping\n\n"
    b'event: message_delta\ndata: {"usage":{"output_tokens":7}}\n\n'
    b'data: {"response":{"usage":null},"usage": {"total_tokens":9}}\r\n\r\n'
    b"data: [DONE]\n\n"
)
FOUND = [b'{"usage":{"output_tokens":7}}', b'{"response":{"usage":null},"usage": {"total_tokens":9}}']


class Reader:
    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.bodies: list[bytes] = []

    def stream_usage(self, event: bytes) -> None:
        self.events.append(event)

    def body_usage(self, body: bytes) -> None:
        self.bodies.append(body)


def events(chunks: list[bytes], limit: int = 65536) -> list[bytes]:
    reader = Reader()
    tap = EventUsage(limit)
    for chunk in chunks:
        tap.feed(chunk, reader)
    tap.finish(reader)
    tap.finish(reader)
    return reader.events


def test_events_with_usage_are_found_wherever_they_are_cut() -> None:
    assert events([EVENTS]) == FOUND
    for cut in range(len(EVENTS)):
        assert events([EVENTS[:cut], EVENTS[cut:]]) == FOUND
    assert events([bytes((byte,)) for byte in EVENTS]) == FOUND


def test_a_stream_that_breaks_off_after_its_usage() -> None:
    assert events([b'data: {"usage":{"total_tokens":9}}']) == [b'{"usage":{"total_tokens":9}}']


def test_usage_outside_of_data_lines_is_nobodys() -> None:
    assert events([b'event: "usage"\n: "usage":1\n\n']) == []


def test_sglang_reports_in_meta_info() -> None:
    event = b'{"text":"a","meta_info":{"finish_reason":null}}'
    assert events([b"\n", b"data: " + event + b"\n\n"]) == [event]


def test_a_line_beyond_the_limit_is_dropped_and_the_next_one_read() -> None:
    chunks = [b'data: {"usage":{"a":"', b"x" * 100, b"y" * 100, b'"}}\n', b'data: {"usage":{"b":1}}\n']
    assert events(chunks, limit=50) == [b'{"usage":{"b":1}}']
    assert events(chunks, limit=500) == [b'{"usage":{"a":"' + b"x" * 100 + b"y" * 100 + b'"}}', b'{"usage":{"b":1}}']


def test_only_an_idle_tap_may_be_passed_by() -> None:
    reader = Reader()
    tap = EventUsage(100)
    assert not tap.idle
    tap.feed(b"data: {}\n\n", reader)
    assert tap.idle
    tap.feed(b"data: {", reader)
    assert not tap.idle
    tap.feed(b"}\n\n", reader)
    assert tap.idle
    assert tap.marker == b'"usage"'


def answers(chunks: list[bytes], limit: int) -> list[bytes]:
    reader = Reader()
    tap = AnswerUsage(limit)
    for chunk in chunks:
        tap.feed(chunk, reader)
    tap.finish(reader)
    tap.finish(reader)
    return reader.bodies


def test_a_json_answer_is_read_whole_up_to_the_limit_and_then_its_tail() -> None:
    assert answers([b"{}"], 100) == [b"{}"]
    assert answers([b"a" * 60, b"b" * 40], 100) == [b"a" * 60 + b"b" * 40]
    assert answers([b"a" * 60, b"b" * 60, b"c" * 10], 100) == [b"b" * 25 + b"c" * 10]
    assert answers([], 100) == []
