from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from epp.api import Usage
from epp_plugins.parsers.usage import (
    usage_in_answer,
    usage_in_anthropic_event,
    usage_in_event,
    usage_in_meta_info,
    usage_in_meta_info_event,
)

Events = Callable[[str], list[bytes]]
Answer = Callable[[str], bytes]


@pytest.mark.parametrize(
    ("file", "usage"),
    [
        ("completions_tokenids.json", Usage(4, 3, 7, 0)),
        ("completions_multi_prompt.json", Usage(4, 4, 8, 0)),
        ("generate_tokens.json", Usage(4, 4, 8, 0)),
        ("messages_nostream.json", Usage(13, 4, 17, 0)),
        ("responses_nostream.json", Usage(13, 4, 17, 0)),
        ("chat_render.json", None),
        ("chat_render_lora_salt.json", None),
        ("err_400_missing_messages.json", None),
        ("err_404_model.json", None),
    ],
)
def test_captured_answers(answer: Answer, file: str, usage: Usage | None) -> None:
    assert usage_in_answer(answer(file)) == usage


def _merged(read: Callable[[bytes], Usage | None], events: list[bytes]) -> Usage:
    usage = Usage()
    for event in events:
        found = read(event)
        if found is not None:
            usage.merge(found)
    return usage


@pytest.mark.parametrize(
    ("file", "usage"),
    [
        ("chat_stream_usage.sse", Usage(26, 6, 32, 0)),
        ("chat_stream_usage_continuous.sse", Usage(26, 4, 30, 0)),
        ("completions_stream_usage.sse", Usage(3, 6, 9, 0)),
        ("responses_stream.sse", Usage(13, 4, 17, 0)),
        ("generate_tokens_stream.sse", Usage()),
    ],
)
def test_captured_streams(events: Events, file: str, usage: Usage) -> None:
    assert _merged(usage_in_event, events(file)) == usage


def test_captured_anthropic_stream(events: Events) -> None:
    assert _merged(usage_in_anthropic_event, events("messages_stream.sse")) == Usage(13, 4, 17, 0)


def test_anthropic_total_of_parts_in_different_events() -> None:
    counts = b'{"input_tokens":25,"cache_read_input_tokens":5,"output_tokens":1}'
    start = b'{"type":"message_start","message":{"usage":' + counts + b"}}"
    delta = b'{"type":"message_delta","delta":{},"usage":{"output_tokens":15}}'
    assert usage_in_anthropic_event(start) == Usage(25, None, None, 5)
    assert usage_in_anthropic_event(delta) == Usage(None, 15, None, None)
    assert _merged(usage_in_anthropic_event, [start, delta]) == Usage(25, 15, 40, 5)


@pytest.mark.parametrize("cut", [1, 20, 300, 500])
def test_the_tail_of_an_answer_is_enough(cut: int) -> None:
    body = json.dumps({"choices": [{"text": "x" * 600}], "usage": {"prompt_tokens": 5, "completion_tokens": 6}})
    assert usage_in_answer(body[cut:].encode()) == Usage(5, 6, 11)


def test_the_last_usage_object_counts() -> None:
    tail = b'..."usage":{"prompt_tokens":1}},"usage" : {"prompt_tokens":2,"completion_tokens":2},"x":{"usage":null}}'
    assert usage_in_answer(tail) == Usage(2, 2, 4)


def test_a_usage_object_that_is_cut_off_falls_back_to_the_one_before() -> None:
    assert usage_in_answer(b'"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":') == Usage(1)


def test_quoted_usage_in_text_is_not_usage() -> None:
    assert usage_in_answer(b'..."text":"\\"usage\\":{\\"prompt_tokens\\":9}"}') is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": "5", "completion_tokens": "6", "total_tokens": "11"}, Usage(5, 6, 11)),
        ({"prompt_tokens": 5.0, "completion_tokens": "6.0"}, Usage(5, 6, 11)),
        ({"input_tokens": 5, "output_tokens": 6, "input_tokens_details": {"cached_tokens": "4"}}, Usage(5, 6, 11, 4)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": "none"}, Usage(5)),
        ({"prompt_tokens": "many", "completion_tokens": 1}, Usage(None, 1)),
        ({"prompt_tokens": -5, "completion_tokens": True, "total_tokens": "1e999"}, None),
        ({"prompt_tokens": "nan", "completion_tokens": None}, None),
        ({}, None),
        (None, None),
        ("none", None),
    ],
)
def test_odd_counts(usage: object, expected: Usage | None) -> None:
    body = json.dumps({"id": 1, "usage": usage}).encode()
    assert usage_in_answer(body) == expected
    assert usage_in_event(body) == expected


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b'{"usage":null}',
        b'{"choices":[]}',
        b'{"usage"',
        b'{"type":"response.created","response":{"usage":{"input_tokens":5}}}',
        b'{"type":"response.completed","response":{"usage":null}}',
        b'{"type":"response.completed","usage":null}',
        b'["usage"]',
    ],
)
def test_events_without_usage(event: bytes) -> None:
    assert usage_in_event(event) is None


@pytest.mark.parametrize("ending", ["completed", "incomplete", "failed"])
def test_the_event_that_ends_a_response(ending: str) -> None:
    event = {"type": f"response.{ending}", "response": {"usage": {"input_tokens": 5, "output_tokens": 2}}}
    assert usage_in_event(json.dumps(event).encode()) == Usage(5, 2, 7)


@pytest.mark.parametrize(
    "event",
    [
        b'{"type":"message_stop"}',
        b'{"type":"ping","usage":{"output_tokens":5}}',
        b'{"type":"message_start","message":{"usage":null}}',
        b'{"type":"message_start","usage":{}}',
        b'{"usage"',
    ],
)
def test_anthropic_events_without_usage(event: bytes) -> None:
    assert usage_in_anthropic_event(event) is None


def test_sglang_meta_info() -> None:
    counts = b'"prompt_tokens":7,"completion_tokens":3,"cached_tokens":2'
    meta = b'"meta_info":{"id":"x","finish_reason":{"type":"stop"},' + counts + b"}"
    assert usage_in_meta_info(b'{"text":"hi",' + meta + b"}") == Usage(7, 3, 10, 2)
    assert usage_in_meta_info(b"... cut " + meta + b"}") == Usage(7, 3, 10, 2)
    assert usage_in_meta_info(b'[{"text":"a",' + meta + b"}]") == Usage(7, 3, 10, 2)
    assert usage_in_meta_info(b'{"error":"no"}') is None
    assert usage_in_meta_info(b"") is None


def test_sglang_reports_the_last_event_only() -> None:
    going = b'{"text":"h","meta_info":{"finish_reason":null,"prompt_tokens":7,"completion_tokens":1}}'
    done = b'{"text":"hi","meta_info":{"finish_reason":{"type":"length"},"prompt_tokens":7,"completion_tokens":3}}'
    assert usage_in_meta_info_event(going) is None
    assert usage_in_meta_info_event(done) == Usage(7, 3, 10)
    assert usage_in_meta_info_event(b'{"text":"x"}') is None
    assert usage_in_meta_info_event(b'{"meta_info"') is None
