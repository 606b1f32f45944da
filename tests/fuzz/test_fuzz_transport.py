"""The fuzz target of the transport for a few seconds, as a part of the suite."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transport_fuzz", Path(__file__).with_name("transport_fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = _load()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # every bad input is logged
    yield
    logging.disable(logging.NOTSET)


@given(st.binary(max_size=400))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_any_bytes(data: bytes) -> None:
    FUZZ.one_input(data)


def test_random_conversations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["transport_fuzz.py", "--random", os.environ.get("EPP_FUZZ_SECONDS", "12")])
    FUZZ.main()
    assert int(capsys.readouterr().out.split()[0]) > 50


def test_the_target_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is forgotten without a word to its handler is found, so the checks are not empty."""
    from epp.transport.stream import ServerStream

    monkeypatch.setattr(ServerStream, "farewell", lambda _self, _reason: None)
    opening = bytes((0, 4, 0, 0, 3)) + b"\1ab"
    with pytest.raises(AssertionError, match="never told"):
        FUZZ.one_input(opening)
