"""The worked example of docs/write-a-plugin.md: built, installed with pip, and run in a real configuration."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "price-scorer"
GUIDE = Path(__file__).parents[2] / "docs" / "write-a-plugin.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the example was installed into, offline."""
    source = tmp_path_factory.mktemp("source") / "price-scorer"
    shutil.copytree(EXAMPLE, source)
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-build-isolation", "--no-deps", "--target", str(target), str(source)),
        ],
        check=True,
        timeout=100,
    )
    return target


def run(site: Path, *arguments: str, cwd: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_it_is_found_and_documented(site: Path) -> None:
    told = run(site, "-m", "epp.cli.main", "plugins", "price-scorer", "--output", "json")
    assert told.returncode == 0, told.stderr
    described = json.loads(told.stdout)
    assert described["from"] == "price-scorer 0.1.0"
    assert [one["name"] for one in described["parameters"]] == ["label", "budget"]


def test_its_configuration_is_valid(site: Path) -> None:
    checked = run(site, "-m", "epp.cli.main", "check", "config.yaml", "--output", "json")
    assert checked.returncode == 0, checked.stderr
    told = json.loads(checked.stdout)
    assert told["warnings"] == []
    parameters = next(plugin for plugin in told["config"]["plugins"] if plugin["name"] == "price-scorer")["parameters"]
    assert parameters == {"label": "price-per-hour", "budget": 12.5}


def test_without_it_the_configuration_is_refused() -> None:
    refused = run(Path("/nonexistent"), "-m", "epp.cli.main", "check", "config.yaml")
    assert refused.returncode == 1
    assert "plugins[1].type: unknown plugin type `price-scorer`" in refused.stderr


def test_its_own_tests_pass_on_what_was_installed(site: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "config.yaml", tmp_path)
    tested = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    assert "6 passed" in tested.stdout


def test_the_first_steps_of_the_guide_work(tmp_path: Path) -> None:
    blocks = GUIDE.read_text().split("```")
    (tmp_path / "price.py").write_text(blocks[1].removeprefix("python\n"))
    (tmp_path / "config.yaml").write_text(blocks[3].removeprefix("yaml\n"))
    checked = run(Path("/nonexistent"), "-m", "epp.cli.main", "check", "config.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "valid, 0 warnings" in checked.stderr
