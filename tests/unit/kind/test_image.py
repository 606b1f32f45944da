"""The image that up.sh builds: its context has what the Dockerfile copies, and that is enough to run the program."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from tests.kubernetes.manifests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps this path, or a folder above it, out of the build context."""
    patterns = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    candidates = [PurePosixPath(path), *PurePosixPath(path).parents][:-1]
    for pattern in (p for p in patterns if p and not p.startswith("#")):
        assert not pattern.startswith("!"), "exceptions in .dockerignore are not understood here"
        for candidate in candidates:
            name = candidate.name if pattern.startswith("**/") else str(candidate)
            if fnmatch.fnmatchcase(name, pattern.removeprefix("**/").rstrip("/")):
                return True
    return False


def copied() -> list[tuple[str, str]]:
    """Source and destination of every COPY from the context."""
    found: list[tuple[str, str]] = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, destination = line.split()
        found += [(source, destination) for source in sources]
    return found


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What the COPY lines leave in the image's /src."""
    for source, destination in copied():
        origin = ROOT / source
        target = tmp_path / destination
        if origin.is_dir():
            for file in origin.rglob("*"):
                relative = file.relative_to(ROOT)
                if file.is_file() and not ignored(str(relative)):
                    to = target / file.relative_to(origin)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, to)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, target / origin.name)
    return tmp_path


def test_dockerignore_is_read_as_docker_reads_it() -> None:
    assert ignored("tests/unit/kind/test_image.py")
    assert ignored("epp/api/__pycache__/x.pyc")
    assert not ignored("epp/tests/x.py")
    assert not ignored("epp/cli/main.py")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    assert copied()
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert not ignored(source), f"{source} is in .dockerignore"


def test_what_the_build_needs_is_copied(context: Path) -> None:
    project = tomllib.loads((context / "pyproject.toml").read_text())
    assert (context / project["project"]["readme"]).exists()
    for pattern in project["project"]["license-files"]:
        assert list(context.glob(pattern)), pattern
    packages = {name.removesuffix(".*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    places = [context / where for where in project["tool"]["setuptools"]["packages"]["find"]["where"]]
    for package in packages:
        assert any((place / package / "__init__.py").exists() for place in places), package


def test_pickers_extras_are_installed() -> None:
    extras = re.search(r"\.\[([a-z,]+)\]", DOCKERFILE)
    assert extras
    assert "kubernetes" in extras[1].split(","), "without it the picker cannot watch an InferencePool"


@pytest.mark.parametrize("command", [["serve", "--help"], ["sim", "--help"], ["plugins"]])
def test_program_runs_from_the_context_alone(context: Path, command: list[str]) -> None:
    path = os.pathsep.join(str(context / place) for place in (".", "plugins", "benchmarks/simulator"))
    program = (
        "import sys, epp, epp_plugins, epp_simulator\n"
        "for package in (epp, epp_plugins, epp_simulator):\n"
        "    assert package.__file__.startswith(sys.argv[1]), package.__file__\n"
        "from epp.cli.main import main\n"
        "sys.argv[:] = ['epp', *sys.argv[2:]]\n"
        "sys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program, str(context), *command],
        env=environment,
        cwd=context,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
