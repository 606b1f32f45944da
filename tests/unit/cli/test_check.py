"""`epp check` says whether a configuration works and what it means."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml

from epp.cli.check import run

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
PICK_FIRST = """
import epp

class First(epp.Picker):
    type = "first-picker"
    stability = "alpha"

    def pick(self, request, endpoints, scores):
        return [0]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "first.py").write_text(PICK_FIRST)
    return tmp_path / "config.yaml"


def test_a_good_one_is_printed_in_full(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(HEAD + "plugins:\n- type: queue-scorer\n- type: max-score-picker\n")
    assert run([str(file)]) == 0
    printed = capsys.readouterr()
    again = file.with_name("again.yaml")
    again.write_text(printed.out)
    assert "  - name: max-score-picker  # (default)\n    type: max-score-picker\n" in printed.out
    assert "  - pluginRef: queue-scorer" in printed.out
    assert "  - name: inflight-load-producer  # (default)\n" in printed.out
    assert f"{file}: valid, 0 warnings" in printed.err
    assert run([str(again), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"] == yaml.safe_load(printed.out)


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(HEAD + "plugins: [{type: max-score-picker}]\n")
    assert run([str(file), "--output", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is True
    assert "schedulingProfiles" in told["defaults"]
    assert any("has no scorer" in warning for warning in told["warnings"])
    assert told["config"]["requestHandler"]["parsers"][0] == {"pluginRef": "openai-parser"}


def test_what_plugins_warn_of_as_they_are_built_is_told(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(
        HEAD + "plugins:\n- {type: approx-prefix-cache-producer, parameters: {blockSize: 64}}\n"
        "- {type: prefix-cache-scorer}\n"
        "- {type: active-request-scorer, parameters: {requestTimeout: 2m}}\n"
    )
    assert run([str(file), "--output", "json"]) == 0
    former, idle = json.loads(capsys.readouterr().out)["warnings"]
    assert "approx-prefix-cache-producer: parameter blockSize is deprecated, use blockSizeTokens" in former
    assert "requestTimeout has no effect" in idle
    assert run([str(file)]) == 0
    assert f"{file}: valid, 2 warnings" in capsys.readouterr().err


def test_an_error_is_told_with_its_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(HEAD + "plugins:\n- type: qeue-scorer\n")
    assert run([str(file)]) == 1
    assert "config.yaml:4: plugins[0].type: unknown plugin type `qeue-scorer` (did you" in capsys.readouterr().err
    assert run([str(file), "--output=json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is False
    assert told["error"]["line"] == 4
    assert told["error"]["path"] == "plugins[0].type"
    assert told["error"]["fix"] == "did you mean `queue-scorer`?"


def test_files_beside_it_and_experimental_plugins(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(HEAD + "plugins: [{name: first, type: './first.py:First'}]\n")
    assert run([str(file)]) == 1
    assert "--allow-experimental-plugins" in capsys.readouterr().err
    assert run([str(file), "--allow-experimental-plugins"]) == 0
    assert "pluginRef: first" in capsys.readouterr().out


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(HEAD + "plugin: []"))
    assert run(["-"]) == 1
    assert "standard input:3: plugin: unknown field" in capsys.readouterr().err


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(tmp_path / "nothing.yaml")]) == 1
    assert "cannot read the configuration file" in capsys.readouterr().err
