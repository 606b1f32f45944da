"""Damaged requests: whatever is cut, flipped, doubled or spliced in, a parser answers or refuses, in bounded time."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Any

from epp.api import BadRequest, EndpointTable, InferenceRequest, NoParams, Parser, PluginContext
from epp.director.parsing import ParserTable
from epp_plugins.parsers.anthropic import AnthropicParser
from epp_plugins.parsers.openai import OpenAIParser
from epp_plugins.parsers.sglanghttp import SGLangHTTPParser
from epp_plugins.parsers.vllmhttp import VLLMHTTPParser
from epp_plugins.producers.token_producer import TokenProducer

_SECONDS = 3.0
_DATA = Path(__file__).parents[1] / "data" / "parsers"
_INSERTS = (
    b'"',
    b"\\",
    b"[" * 1200,
    b"]" * 50,
    b'{"a":' * 1100,
    b"null",
    b"1e99999",
    b"-",
    b"\xff",
    b"\xf0\x9f\x98",
    b"\\ud83d",
    b"\0",
    b'"model":"x",',
    b'"messages":[{}],',
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA////////"}},',
    b"99999999999999999999999",
)


def _find(name: str) -> Any:
    raise LookupError(name)


def _mutated(rng: random.Random, body: bytes) -> bytes:
    data = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        match rng.randint(0, 4):
            case 0:
                del data[at : at + rng.randint(1, 20)]
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randint(0, 7)
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 3:
                data[at:at] = rng.choice(_INSERTS)
            case _:
                data[at:] = data[at : rng.randint(at, len(data))]
    return bytes(data)


def test_damaged_bodies_and_answers() -> None:
    rng = random.Random(20261121)
    context = PluginContext("p", lambda: 0.0, rng, logging.getLogger("test"), EndpointTable(), _find)
    parsers: list[Parser[Any]] = [
        cls(NoParams(), context) for cls in (OpenAIParser, AnthropicParser, VLLMHTTPParser, SGLangHTTPParser)
    ]
    table = ParserTable(parsers)
    tokens = TokenProducer(TokenProducer.Params(), context)
    endpoints = context.table.all(0.0)
    requests = []
    for file in sorted((_DATA / "requests").glob("*.http")):
        head, _, body = file.read_bytes().partition(b"\r\n\r\n")
        requests.append((head.split(b" ", 2)[1].decode(), body))
    answers = [file.read_bytes() for file in sorted((_DATA / "answers").iterdir())]

    understood = refused = 0
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        path, body = rng.choice(requests)
        body = _mutated(rng, body)
        try:
            parser = table.resolve(path if rng.random() < 0.9 else "", {}, body)
            payload = parser.parse(path, {}, body)
            request = InferenceRequest(id="r", headers={}, path=path, body=body, payload=payload, received_at=0.0)
            tokens.produce(request, endpoints)
            if payload.rewritable:
                spliced = parser.rewrite_model(payload, body, "other")
                assert parser.parse(path, {}, spliced).model == "other"
            understood += 1
        except BadRequest:
            refused += 1
            continue
        piece = _mutated(rng, rng.choice(answers))
        parser.usage(payload, piece)
        parser.stream_usage(payload, piece)
    assert understood > 50
    assert refused > 50
