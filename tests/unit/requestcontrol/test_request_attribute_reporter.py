"""`request-attribute-reporter`: what reaches the dynamic metadata."""

from __future__ import annotations

from typing import Any

import pytest

from epp.api import ConfigError, InferenceRequest, InferenceResponse, Payload, Usage
from epp.testing import plugin
from epp_plugins.requestcontrol.cel import CelError
from epp_plugins.requestcontrol.request_attribute_reporter import (
    RequestAttributeReporter,
)


def attribute(expression: str, condition: str = "", name: str = "cost", **key: str) -> dict[str, Any]:
    return {"key": {"name": name, **key}, "expression": expression, "condition": condition}


def make(*attributes: dict[str, Any]) -> RequestAttributeReporter:
    return plugin(RequestAttributeReporter, {"attributes": list(attributes)}, name="reporter")


def report(usage: Usage, *attributes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    response = InferenceResponse(usage=usage)
    make(*attributes).on_response_end(InferenceRequest("r", {}, "/", b"", Payload(), 0.0), response)
    return response.metadata


USAGE = Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, cached_tokens=4)


def test_a_sum() -> None:
    assert report(USAGE, attribute("usage.prompt_tokens + usage.completion_tokens\n")) == {"envoy.lb": {"cost": 15}}


def test_the_number_is_whole() -> None:
    value = report(USAGE, attribute("usage.prompt_tokens / 4"))["envoy.lb"]["cost"]
    assert value == 2
    assert type(value) is int


def test_usage_is_double_until_the_end() -> None:
    assert report(USAGE, attribute("usage.prompt_tokens / 4 * 4"))["envoy.lb"]["cost"] == 10


def test_cached_tokens() -> None:
    names = ("prompt_tokens_details", "prompt_token_details")
    for name in names:
        expression = f"usage.prompt_tokens - usage.{name}.cached_tokens"
        assert report(USAGE, attribute(expression)) == {"envoy.lb": {"cost": 6}}


def test_several_attributes_and_namespaces() -> None:
    metadata = report(
        USAGE,
        attribute("usage.prompt_tokens", name="in"),
        attribute("usage.completion_tokens", name="out"),
        attribute("usage.total_tokens", name="sum", namespace="mine"),
        attribute("1", name="one", namespace=""),
    )
    assert metadata == {"envoy.lb": {"in": 10, "out": 5, "one": 1}, "mine": {"sum": 15}}


def test_conditions() -> None:
    guarded = attribute("usage.prompt_tokens", "has(usage.prompt_tokens) && usage.prompt_tokens > 5")
    assert report(USAGE, guarded) == {"envoy.lb": {"cost": 10}}
    assert report(Usage(prompt_tokens=5), guarded) == {}
    assert report(Usage(), guarded) == {}


def test_the_documented_default_for_missing_fields() -> None:
    expression = (
        "(has(usage.prompt_tokens) ? usage.prompt_tokens : 0)"
        " + (has(usage.completion_tokens) ? usage.completion_tokens : 0)"
    )
    assert report(Usage(completion_tokens=3), attribute(expression)) == {"envoy.lb": {"cost": 3}}


def test_a_failure_is_raised_and_the_others_are_reported() -> None:
    response = InferenceResponse(usage=Usage(prompt_tokens=1))
    plugin = make(
        attribute("usage.completion_tokens", name="bad"),
        attribute("usage.prompt_tokens", name="good"),
        attribute("1", "usage.prompt_tokens", name="no condition"),
    )
    with pytest.raises(CelError, match=r"attribute bad: usage\.completion_tokens was not reported"):
        plugin.on_response_end(InferenceRequest("r", {}, "/", b"", Payload(), 0.0), response)
    assert response.metadata == {"envoy.lb": {"good": 1}}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ([], "length >= 1"),
        ([attribute("")], "length >= 1"),
        ([attribute("1", name="")], "length >= 1"),
        ([attribute("usage.")], r"attributes\[0\]: expression of cost: expected a field name at position 6"),
        ([attribute("1"), attribute("1", "foo")], r"attributes\[1\]: condition of cost: unknown name 'foo'"),
        ([{"key": {"name": "a"}, "expression": "1", "typo": 1}], "unknown field `typo`"),
        ([{"expression": "1"}], "key"),
    ],
)
def test_bad_parameters_stop_the_start(attributes: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(*attributes)
