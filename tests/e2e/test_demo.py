"""`epp demo` does what the README says, without a terminal and as JSON."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import socket
import sys
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
    assert "prefix-cache 3 x 1.00" in out
    assert "Where the requests went:" in out
    assert "\x1b[" not in out
    config = tmp_path / "bad.yaml"
    config.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: nothing-like-it}]\n")
    assert run(["--config", str(config), "--once"]) == 1
    assert "nothing-like-it" in capsys.readouterr().err


# As a guide for a cluster has it: a render server, and a port of KV events, that only a cluster has.
PRECISE = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: token-producer
  parameters: {modelName: Qwen/Qwen3-32B, vllm: {url: "http://qwen-render:8000"}}
- type: endpoint-notification-source
- type: precise-prefix-cache-producer
  parameters:
    tokenProcessorConfig: {blockSizeTokens: 64}
    speculativeIndexing: true
    kvEventsConfig: {topicFilter: "kv@", concurrency: 8, discoverPods: true, podDiscoveryConfig: {socketPort: 5556}}
- type: inflight-load-producer
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}
- type: prefix-cache-affinity-filter
  parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer, peakPrefillThroughput: 15926}
- {name: beside, type: "./beside.py:Beside"}
- type: token-load-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-affinity-filter}
  - {pluginRef: token-load-scorer, weight: 2}
  - {pluginRef: beside}
dataLayer:
  sources: [{pluginRef: endpoint-notification-source, extractors: [{pluginRef: precise-prefix-cache-producer}]}]
"""
BESIDE = """
import epp

class Beside(epp.Scorer):
    type = "beside"

    def score(self, request, endpoints):
        return epp.fewer_is_better(endpoints.waiting)
"""


def test_a_configuration_for_a_cluster_runs_with_plugins_that_lie_beside_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text(BESIDE)
    config = tmp_path / "precise.yaml"
    config.write_text(PRECISE)
    assert run(["--servers", "2", "--config", str(config), "--once"]) == 0
    out = capsys.readouterr().out
    assert "instead of http://qwen-render:8000" in out
    assert "instead of port 5556 of pods" in out
    assert "token-load 2 x " in out
    assert " + beside " in out
    # Nobody's second turn is without a cached token: token ids, events and the index fit together.
    assert not re.search(r"turn [234] .*  0 of ", out)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the configuration file"),
        ("a: [", "not well-formed YAML"),
        ("- a", "expected a mapping"),
        ("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [x]\n", "bad.yaml:3: plugins[0]"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(
    text: str | None, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "bad.yaml"
    if text is not None:
        config.write_text(text)
    assert run(["--config", str(config), "--once"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("epp demo: ")
    assert said in told
    assert told.count("\n") == 1


def test_requests_that_fail_are_told_beside_the_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "nobody.yaml"
    nobody = "{type: label-selector-filter, parameters: {matchLabels: {there-is: none}}}"
    config.write_text(f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{nobody}]\n")
    assert run(["--servers", "2", "--config", str(config), "--output", "json"]) == 1
    told = capsys.readouterr()
    requests = json.loads(told.out)["requests"]
    assert {(request["status"], request["server"]) for request in requests} == {(429, "")}
    assert "16 of 16 requests failed, the first with 429: inference error: " in told.err
    assert "no endpoint left after filter label-selector-filter" in told.err
    Screen().decided(Turn("travel-1", 1, "x", status=429, error="[red] no"), None)
    assert "travel-1  turn 1 -> 429  [red] no" in capsys.readouterr().out


def test_a_port_that_another_process_has(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert run(["--port", str(number), "--once"]) == 1
    assert f"--port {number}: another process has that port" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(["--port", "99999"])


@pytest.mark.parametrize("shown", ["simulated servers on ports", "turn 2", "Try it"])
def test_ctrl_c_in_a_terminal_ends_it_at_any_time_and_leaves_no_process(shown: str) -> None:
    process, terminal = pty.fork()  # its signals go to all processes of the terminal, as those of a shell do
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-m", "epp", "demo", "--servers", "2"])
    out = _until(terminal, shown)
    folder = Path(f"/proc/{process}/task/{process}/children")
    children = folder.read_text().split()
    assert children
    os.write(terminal, b"\x03")
    out += _until(terminal, None)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, out
    assert "Traceback" not in out
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def _until(terminal: int, shown: str | None) -> str:
    """What the terminal shows until it shows that, or until its last process has ended."""
    out = ""
    while shown is None or shown not in out:
        try:
            out += os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # Linux: nobody holds the other end any more
            assert shown is None, out
            break
    return out


def test_why_compares_the_winner_with_the_next() -> None:
    choice = Choice("r", "a", {"a": 2.0, "b": 1.0}, {"a": {"queue-scorer": 1.0}, "b": {"queue-scorer": 0.5}})
    assert choice.why() == "2.00 = queue 1.00   next b: 1.00 = queue 0.50"
    assert Choice("r", "a", {"a": 2.0}, {"a": {}}).why() == "2.00 (no scorer)   no other candidate"
    weighed = Choice("r", "a", {"a": 2.0}, {"a": {"queue-scorer": 1.0, "x": math.nan}}, weights={"queue-scorer": 2.0})
    assert weighed.why() == "2.00 = queue 2 x 1.00 + x no data   no other candidate"


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
