"""The command line finds its subcommands and imports nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from epp.cli import main as cli


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["epp", "0.1.0"]
    assert cli.main(["version", "x"]) == 2


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chekc"]) == 2
    assert "did you mean `check`" in capsys.readouterr().err


def test_interrupt_and_closed_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "version", interrupted)
    assert cli.main(["version"]) == 130


def test_as_a_process_writing_to_nobody() -> None:
    code = "import sys; from epp.cli.main import main; sys.exit(main(['plugins']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        assert process.wait(60) in (0, 1)
    assert "Traceback" not in errors


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "--help"]) == 0
    assert cli.main(["help", "version"]) == 0
    with pytest.raises(SystemExit, match="0"):
        cli.main(["help", "check"])
    assert capsys.readouterr().out.count("usage: epp version") == 2
