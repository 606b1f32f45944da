from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from epp.api import BadRequest, NoParams, Parser, Payload
from epp.director.parsing import ParserTable, request_path


class _Parser(Parser[NoParams]):
    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Payload:
        return Payload(self.type)


def parser(kind: str, *suffixes: str) -> Parser[Any]:
    cls = type(kind, (_Parser,), {"type": kind, "paths": suffixes})
    built: Parser[Any] = object.__new__(cls)
    return built


OPENAI = parser("openai", "chat/completions", "completions", "chat/completions/render", "embeddings")
MESSAGES = parser("anthropic", "messages", "messages/count_tokens")
VLLM = parser("vllm", "inference/v1/generate")
SGLANG = parser("sglang", "generate")
ANY = parser("any")


def resolve(table: ParserTable, path: str) -> str:
    return table.resolve(path, {}, b"").type


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", "openai"),
        ("/v1/chat/completions/", "openai"),
        ("/v1/chat/completions?a=/messages", "openai"),
        ("/projects/p/endpoints/e/chat/completions", "openai"),
        ("completions", "openai"),
        ("/v1/chat/completions/render", "openai"),
        ("/v1/messages/count_tokens?beta=true", "anthropic"),
        ("/inference/v1/generate", "vllm"),
        ("/generate", "sglang"),
        ("/x/generate", "sglang"),
        ("/x/mycompletions", "any"),
        ("/v1/chat/completions/x", "any"),
        ("/", "any"),
        ("//", "any"),
    ],
)
def test_the_longest_suffix_in_whole_segments(path: str, expected: str) -> None:
    for order in ([OPENAI, MESSAGES, VLLM, SGLANG, ANY], [SGLANG, VLLM, MESSAGES, OPENAI, ANY]):
        assert resolve(ParserTable(order), path) == expected


def test_paths_that_are_known_by_heart_are_few_and_short() -> None:
    table = ParserTable([OPENAI, MESSAGES, ANY])
    for _ in range(2):
        for number in range(200):
            assert resolve(table, f"/{number}/v1/messages") == "anthropic"
            assert resolve(table, f"/{number}/elsewhere") == "any"
    long = "/x" * 100 + "/completions"
    assert resolve(table, long) == "openai"
    assert len(table._known) <= 64
    assert long not in table._known


def test_nothing_matches() -> None:
    with pytest.raises(BadRequest) as refusal:
        resolve(ParserTable([OPENAI]), "/v1/files/?x=1")
    assert refusal.value.message == "no parser registered matching path suffix for: /v1/files"
    with pytest.raises(BadRequest):
        resolve(ParserTable([]), "/v1/completions")


def test_the_first_of_equal_suffixes_wins() -> None:
    other = parser("other", "completions", "other")
    table = ParserTable([OPENAI, other])
    assert resolve(table, "/v1/completions") == "openai"
    assert resolve(table, "/v1/other") == "other"


def test_parsers_behind_a_fallback_are_never_asked() -> None:
    table = ParserTable([MESSAGES, ANY, OPENAI])
    assert resolve(table, "/v1/completions") == "any"
    assert [p.type for p in table.parsers] == ["anthropic", "any"]


def test_parsers_count_once_per_type() -> None:
    again = parser("openai", "again")
    assert resolve(ParserTable([OPENAI, again, ANY]), "/v1/again") == "any"


def test_path_headers_in_order() -> None:
    body = b'{"messages":[]}'
    headers = {":path": "/a", "x-original-path": "/b", "x-forwarded-path": "/c"}
    assert request_path("/given", headers, body) == "/given"
    for expected in ("/a", "/b", "/c"):
        assert request_path("", headers, body) == expected
        headers.pop(next(iter(headers)))
    assert request_path("", {":path": ""}, body) == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"messages": [], "prompt": "x"}, "/v1/chat/completions"),
        ({"messages": [], "system": "x"}, "/v1/messages"),
        ({"prompt": "x", "input": "y"}, "/v1/completions"),
        ({"input": "x"}, "/v1/embeddings"),
        ({"input": ["x"], "encoding_format": "float"}, "/v1/embeddings"),
        ({"input": "x", "max_output_tokens": 5}, "/v1/responses"),
        ({"input": "x", "stream": False}, "/v1/responses"),
        ({"input": [{"role": "user"}]}, "/v1/responses"),
        ({"items": []}, "/v1/conversations"),
        ({"token_ids": [1]}, "/inference/v1/generate"),
        ({"input_ids": [1]}, "/generate"),
        ({"model": "m"}, "/v1/completions"),
        ([], "/v1/completions"),
    ],
)
def test_the_body_implies_the_path(body: Any, path: str) -> None:
    assert request_path("", {}, json.dumps(body, indent=1).encode()) == path


def test_anthropic_clients_say_so() -> None:
    assert request_path("", {"anthropic-version": "2023-06-01"}, b'{"messages":[]}') == "/v1/messages"


@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"[" * 100_000])
def test_a_body_that_implies_nothing(body: bytes) -> None:
    table = ParserTable([OPENAI])
    assert request_path("", {}, body) == "/v1/completions"
    assert table.resolve("", {}, body) is OPENAI
