"""Programs are found before they are fetched."""

import stat
from pathlib import Path

import pytest

from benchmarks import debian_packages
from benchmarks.debian_packages import MissingToolError, libraries, program


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_one_that_is_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = executable(tmp_path / "mine")
    monkeypatch.setenv("PATH", str(executable(tmp_path / "bin" / "tool").parent))
    monkeypatch.setenv("EPP_TOOL", str(mine))
    assert program("package", names=("tool",), variable="EPP_TOOL") == mine
    monkeypatch.setenv("EPP_TOOL", str(tmp_path / "none"))
    with pytest.raises(MissingToolError, match=r"EPP_TOOL names .*none, which cannot be run"):
        program("package", names=("tool",), variable="EPP_TOOL")


def test_then_the_first_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = executable(tmp_path / "bin" / "other")
    monkeypatch.setenv("PATH", str(found.parent))
    assert program("package", names=("tool", "other"), variable="EPP_TOOL") == found


def test_then_a_package_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian_packages, "_OUT", tmp_path / "out")
    fetched: list[tuple[str, ...]] = []

    def unpack(folder: Path, *arguments: str, wanted: str) -> None:
        fetched.append(arguments)
        executable(folder / "usr/bin/tool")
        executable(folder / "usr/lib/here/libtool.so.1")

    monkeypatch.setattr(debian_packages, "unpack", unpack)
    assert "libtool" not in str(libraries("package"))
    for _ in range(2):
        assert program("package", names=("tool",), variable="EPP_TOOL") == tmp_path / "out/package/usr/bin/tool"
    assert len(fetched) == 1
    assert fetched[0][-1] == "package"
    assert libraries("package")["LD_LIBRARY_PATH"].startswith(str(tmp_path / "out/package/usr/lib/here"))


def test_a_package_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian_packages, "_OUT", tmp_path / "out")
    monkeypatch.setattr(debian_packages, "unpack", lambda folder, *arguments, wanted: None)
    with pytest.raises(MissingToolError, match="package is missing: install it, or name it in EPP_TOOL"):
        program("package", names=("tool",), variable="EPP_TOOL")


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(debian_packages, "_OUT", tmp_path / "out")
    with pytest.raises(MissingToolError, match="there is no apt-get to fetch it with"):
        program("package", names=("tool",), variable="EPP_TOOL")
