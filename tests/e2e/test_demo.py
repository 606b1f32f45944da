"""`epp demo` does what the README says, without a terminal and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from epp.cli.demo import run
from epp.demo.conversation import Turn
from epp.demo.screen import Choice, Screen, summary


def test_the_conversation_is_answered_and_users_of_one_prompt_stay_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--servers", "3", "--output", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    requests = report["requests"]
    assert len(report["servers"]) == 3
    assert len(requests) == 16
    assert {request["status"] for request in requests} == {200}
    for topic in ("travel", "code"):
        mine = [request for request in requests if request["user"].startswith(topic)]
        assert len({request["server"] for request in mine}) == 1
        assert all(request["cached"] > 0 for request in mine[1:])
    assert "prefix-cache-scorer" in next(iter(requests[5]["scores"].values()))


def test_text_of_a_pipe_is_plain_and_a_bad_configuration_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["--servers", "2", "--once"]) == 0
    out = capsys.readouterr().out
    assert "travel-1  turn 1 -> server-" in out
    assert "prefix-cache 1.00" in out
    assert "Where the requests went:" in out
    assert "\x1b[" not in out
    config = tmp_path / "bad.yaml"
    config.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: nothing-like-it}]\n")
    assert run(["--config", str(config), "--once"]) == 1
    assert "nothing-like-it" in capsys.readouterr().err


def test_why_compares_the_winner_with_the_next() -> None:
    choice = Choice("r", "a", {"a": 2.0, "b": 1.0}, {"a": {"queue-scorer": 1.0}, "b": {"queue-scorer": 0.5}})
    assert choice.why() == "2.00 = queue 1.00   next b: 1.00 = queue 0.50"
    assert Choice("r", "a", {"a": 2.0}, {"a": {}}).why() == "2.00 = "


def test_requests_of_others_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    choice = Choice("r7", "server-1", {"server-1": 1.0}, {"server-1": {"queue-scorer": 1.0}})
    screen.routed(choice)
    screen.decided(Turn("travel-1", 2, "x", prompt=10, cached=5, status=200), None)
    out = capsys.readouterr().out
    assert "request r7 -> server-1" in out
    assert "turn 2 -> ?  5 of 10 tokens cached" in out
    assert summary(["server-1"], [], {}) == [("server-1", "0", "", "")]
