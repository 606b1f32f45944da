"""Parsers built as the picker builds them, and the exchanges captured from a real vLLM."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from epp.api import EndpointTable, NoParams, Parser, PluginContext
from epp_plugins.parsers.anthropic import AnthropicParser
from epp_plugins.parsers.openai import OpenAIParser
from epp_plugins.parsers.passthrough import PassthroughParser
from epp_plugins.parsers.sglanghttp import SGLangHTTPParser
from epp_plugins.parsers.vllmhttp import VLLMHTTPParser

_P = TypeVar("_P", bound=Parser[Any])
_DATA = Path(__file__).parents[2] / "data" / "parsers"


def _build(cls: type[_P]) -> _P:
    def find(name: str) -> Any:
        raise LookupError(name)

    context = PluginContext(
        name=cls.type,
        clock=lambda: 0.0,
        rng=random.Random(0),
        log=logging.getLogger("test"),
        table=EndpointTable(),
        find=find,
    )
    return cls(NoParams(), context)


@pytest.fixture
def openai() -> OpenAIParser:
    return _build(OpenAIParser)


@pytest.fixture
def anthropic() -> AnthropicParser:
    return _build(AnthropicParser)


@pytest.fixture
def vllm() -> VLLMHTTPParser:
    return _build(VLLMHTTPParser)


@pytest.fixture
def sglang() -> SGLangHTTPParser:
    return _build(SGLangHTTPParser)


@pytest.fixture
def passthrough() -> PassthroughParser:
    return _build(PassthroughParser)


@pytest.fixture
def all_parsers(
    openai: OpenAIParser,
    anthropic: AnthropicParser,
    vllm: VLLMHTTPParser,
    sglang: SGLangHTTPParser,
    passthrough: PassthroughParser,
) -> list[Parser[Any]]:
    return [openai, anthropic, vllm, sglang, passthrough]


@pytest.fixture
def captured() -> Callable[[str], tuple[str, bytes]]:
    """`captured(name)` -> path and body of a captured request."""

    def load(name: str) -> tuple[str, bytes]:
        head, _, body = (_DATA / "requests" / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
        return head.split(b" ", 2)[1].decode(), body

    return load


@pytest.fixture
def answer() -> Callable[[str], bytes]:
    """`answer(file)` -> a captured response body."""
    return lambda name: (_DATA / "answers" / name).read_bytes()


@pytest.fixture
def events(answer: Callable[[str], bytes]) -> Callable[[str], list[bytes]]:
    """`events(file)` -> the data of each captured SSE event, without the end marker."""

    def load(name: str) -> list[bytes]:
        lines = answer(name).splitlines()
        return [line[6:] for line in lines if line.startswith(b"data: ") and line != b"data: [DONE]"]

    return load
