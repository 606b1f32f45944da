"""`epp plugins` tells from the code what there is, and writes packages that pass their own tests."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

import epp
from epp.cli.plugins import describe, parameters, run, summary
from epp.cli.plugins_new import ROLES
from epp.config import Duration, Quantity
from epp.registry import Catalog


def test_all_types_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{kind} " in printed for kind in Catalog.load().types())
    assert run(["--output", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["broken"] == []
    assert {one["type"] for one in told["plugins"]} == set(Catalog.load().types())
    assert all(one["summary"] and one["roles"] for one in told["plugins"])


def test_one_type_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["token-producer"]) == 0
    printed = capsys.readouterr().out
    assert "token-producer  (producer; " in printed
    assert "parameters:\nNAME" in printed
    assert run(["token-producer", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "token-producer"
    assert run(["passthrough-parser"]) == 0
    assert "parameters: none" in capsys.readouterr().out


def test_an_unknown_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["token-prodcer"]) == 1
    assert "did you mean `token-producer`" in capsys.readouterr().err
    assert run(["token-prodcer", "--output", "json"]) == 1
    told = capsys.readouterr()
    assert told.err == ""
    assert json.loads(told.out)["error"] == {
        "message": "unknown plugin type `token-prodcer`",
        "fix": "did you mean `token-producer`?",
    }


class Broken(epp.Scorer[epp.NoParams]):
    type = "broken"


def test_a_broken_plugin_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        Catalog, "load", lambda *_: Catalog({"broken": f"{__name__}:Broken", "passthrough-parser": PASSTHROUGH})
    )
    assert run([]) == 1
    printed = capsys.readouterr()
    assert "passthrough-parser" in printed.out
    assert "broken: " in printed.err
    assert "does not implement `score`" in printed.err


PASSTHROUGH = "epp_plugins.parsers.passthrough:PassthroughParser"


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Inner(msgspec.Struct, rename="camel"):
    max_value: int = 3


class Everything(epp.Params, frozen=True):
    needed: str
    number: Annotated[float, msgspec.Meta(ge=0, lt=1, description="a share")] = 0.5
    maybe: Annotated[int, msgspec.Meta(gt=0)] | None = None
    mode: Mode = Mode.FAST
    algorithm: Literal["a", "b"] = "a"
    texts: tuple[str, ...] = ()
    by_name: dict[str, bool] = {}  # noqa: RUF012
    inner: Inner = msgspec.field(default_factory=Inner)
    many: list[Inner] = []  # noqa: RUF012
    wait: Duration = Duration(0.2)
    size: Quantity = Quantity(1024)
    code: Annotated[str, msgspec.Meta(pattern="^x", max_length=3, description="a code")] = "x"
    whatever: object = None


def test_parameters_are_described() -> None:
    told = {
        one["name"]: (one["type"], one["default"], one["bounds"], one["description"]) for one in parameters(Everything)
    }
    assert told == {
        "needed": ("text", None, "", ""),
        "number": ("number", 0.5, ">= 0, < 1", "a share"),
        "maybe": ("integer", None, "> 0", ""),
        "mode": ("fast or slow", "fast", "", ""),
        "algorithm": ("a or b", "a", "", ""),
        "texts": ("list of text", (), "", ""),
        "byName": ("mapping of true or false", {}, "", ""),
        "inner": ("mapping", {"maxValue": 3}, "", ""),
        "inner.maxValue": ("integer", 3, "", ""),
        "many": ("list of mapping", [], "", ""),
        "many[].maxValue": ("integer", 3, "", ""),
        "wait": ("duration", "200ms", "", ""),
        "size": ("quantity", 1024, "", ""),
        "code": ("text", "x", "length <= 3, matches ^x", "a code"),
        "whatever": ("anything", None, "", ""),
    }  # fmt: skip
    assert [one["required"] for one in parameters(Everything)][:2] == [True, False]


def test_every_parameter_of_our_plugins_is_described() -> None:
    catalog = Catalog.load()
    silent = [
        f"{kind}: {one['name']}"
        for kind in catalog.types()
        if catalog.origin(kind).startswith("epp ")
        for one in describe(catalog, kind)["parameters"]
        if "." not in one["name"] and not one["description"]
    ]
    assert silent == []


def test_the_summary_is_the_first_sentence() -> None:
    assert summary(Catalog.load().resolve("passthrough-parser")) == "Any body, not looked at."


@pytest.mark.parametrize("role", ROLES)
def test_a_new_package_passes_its_own_test(role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = f"fresh-{role}"
    assert run(["new", role, kind, "--dir", str(tmp_path / "new")]) == 0
    written = capsys.readouterr().out.split()
    assert str(tmp_path / "new" / "pyproject.toml") in written
    assert not any("$" in Path(path).read_text() for path in written)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "new",
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout


def test_a_type_that_exists_is_not_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["new", "scorer", "queue-scorer", "--dir", str(tmp_path / "new")]) == 1
    assert "`queue-scorer` exists already (epp " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_directory_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(["new", "scorer", "fresh-one", "--dir", str(tmp_path / "file" / "new")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine")
    assert run(["new", "scorer", "fresh-one", "--dir", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("name", ["My-Scorer", "my_scorer", "9lives", "class", "json", "epp"])
def test_names_that_would_not_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["new", "scorer", name, "--dir", str(tmp_path)])
    assert name in capsys.readouterr().err
