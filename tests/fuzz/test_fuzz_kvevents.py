"""The fuzz target of KV events for a few seconds, as a part of the suite."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kvevents_fuzz", Path(__file__).with_name("kvevents_fuzz.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = _load()


def test_damaged_messages() -> None:
    inputs, understood = FUZZ.run_random(5.0, 20261121)
    assert 50 < understood < inputs


@pytest.mark.parametrize("number", range(3))
def test_whole_messages_are_understood(number: int) -> None:
    assert FUZZ.run(FUZZ.captured()[number]) > 1
