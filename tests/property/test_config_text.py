"""Whatever stands in a configuration file: it is understood, or refused with a `ConfigError`; nothing else happens."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import epp
from epp.cli.output import yaml_lines
from epp.config import Duration, Quantity, load
from epp.config.document import read

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
KEYS = st.sampled_from(
    ["plugins", "type", "name", "parameters", "schedulingProfiles", "pluginRef", "weight", "featureGates", "dataLayer",
     "discovery", "endpoints", "sources", "requestHandler", "parsers", "flowControl", "maxBytes", "priorityBands",
     "defaultRequestTTL", "parser", "saturationDetector", "priority"]
)  # fmt: skip
NAMES = st.text(max_size=20)
"""YAML reads keys of up to 1024 characters."""

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=40)
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | NAMES, inner, max_size=4)
)


def understood_or_refused(text: str) -> None:
    with contextlib.suppress(epp.ConfigError):
        load(text, "f.yaml")


@given(st.text())
def test_any_text(text: str) -> None:
    understood_or_refused(text)
    understood_or_refused(HEAD + text)


@settings(max_examples=30)
@given(st.dictionaries(KEYS, TREES))
def test_any_tree(tree: dict[str, Any]) -> None:
    understood_or_refused(json.dumps({"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", **tree}))


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_null(entry) for key, entry in value.items() if entry is not None}
    return [without_null(entry) for entry in value] if isinstance(value, list) else value


@settings(max_examples=30)
@given(st.dictionaries(NAMES, TREES))
def test_json_is_read_as_json(tree: dict[str, Any]) -> None:
    assert read(json.dumps(tree)).value == without_null(tree)


@settings(max_examples=30)
@given(st.dictionaries(NAMES, TREES, min_size=1))
def test_what_is_printed_is_read_back(tree: dict[str, Any]) -> None:
    assert read("\n".join(yaml_lines(tree, frozenset()))).value == without_null(tree)


@given(SCALARS)
def test_durations_and_quantities_are_read_or_refused(value: Any) -> None:
    for kind in (Duration, Quantity):
        with contextlib.suppress(ValueError):
            assert isinstance(kind.parse(value), kind)


@given(st.integers(min_value=0, max_value=2**53))
def test_durations_survive_printing(nanoseconds: int) -> None:
    once = Duration(nanoseconds / 1e9)
    assert abs(Duration.parse(str(once)) - once) <= 1e-15 * once + 1e-12
