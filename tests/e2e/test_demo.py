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


def test_prompts_are_read_by_prefill_servers_where_the_configuration_tells_phases_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = Path(__file__).parents[2] / "configs/pd.yaml"
    assert run(["--servers", "3", "--config", str(config), "--output", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [server["name"] for server in report["servers"]] == ["decode-1", "decode-2", "prefill-3"]
    requests = report["requests"]
    assert {request["status"] for request in requests} == {200}
    assert {request["server"] for request in requests} <= {"decode-1", "decode-2"}
    first = [request for request in requests if request["number"] == 1]
    assert {request["user"] for request in first if request["prefill"] == "prefill-3"} >= {"travel-1", "code-1"}
    assert not any(request["prefill"] for request in requests if request["number"] > 1)


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


def test_who_read_the_prompt_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    choice = Choice("r7", "decode-1", {"decode-1": 1.0}, {"decode-1": {}}, prefill="prefill-2")
    turn = Turn("travel-1", 2, "r7", prompt=10, cached=5, status=200)
    Screen().routed(choice)
    Screen().decided(turn, choice)
    out = capsys.readouterr().out
    assert "request r7 -> decode-1 (read by prefill-2)" in out
    assert "turn 2 -> decode-1 (read by prefill-2)  5 of 10 tokens cached" in out
    rows = summary(["decode-1", "prefill-2"], [turn], {"r7": choice})
    assert rows[1] == ("prefill-2", "0", "", "1 prompt read for travel-1")
