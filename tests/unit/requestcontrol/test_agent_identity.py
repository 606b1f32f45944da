"""`agent-identity`: which headers count, and who decides about fairness."""

from __future__ import annotations

import pytest

from epp.api import DataKey, InferenceRequest, Payload
from epp.testing import plugin
from epp_plugins.requestcontrol.agent_identity import AgentIdentity

KEY = DataKey("agent-identity", "agent-identity")


def run(headers: dict[str, str], fairness_id: str = "default-flow", **params: list[str]) -> tuple[str | None, str]:
    made = plugin(AgentIdentity, params)
    assert made.produces == (KEY,)
    request = InferenceRequest("r", headers, "/", b"", Payload(), 0.0, fairness_id=fairness_id)
    made.on_request(request)
    return request.attributes.get(KEY), request.fairness_id


@pytest.mark.parametrize("name", ["x-claude-code-session-id", "x-session-affinity", "session-id", "session_id"])
def test_known_headers(name: str) -> None:
    assert run({name: "s1"}) == ("s1", "s1")


def test_the_first_non_empty_header_wins() -> None:
    headers = {"session_id": "last", "x-session-affinity": "second", "x-claude-code-session-id": " "}
    assert run(headers) == ("second", "second")


def test_additional_headers_come_first() -> None:
    headers = {"x-mine": "mine", "session-id": "theirs"}
    assert run(headers, additionalSessionHeaders=["x-none", "X-Mine"]) == ("mine", "mine")


def test_an_explicit_fairness_id_stays() -> None:
    assert run({"session-id": "s"}, fairness_id="team") == ("s", "team")


def test_without_headers_nothing_changes() -> None:
    assert run({"x-other": "1"}) == (None, "default-flow")
