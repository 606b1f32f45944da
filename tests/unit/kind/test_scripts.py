"""up.sh and down.sh: clean to a linter, and what they ask of kind, kubectl, helm and docker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.manifests import ROOT

KIND = ROOT / "benchmarks/kind"
SCRIPTS = sorted(KIND.glob("*.sh"))


def shellcheck() -> str:
    """The linter of this interpreter's environment, or of the PATH."""
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install -e '.[dev]'"
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    found = subprocess.run([shellcheck(), str(script)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert script.stat().st_mode & 0o100, "not executable"


@pytest.mark.parametrize("gateway", ["envoy", "istio", "kgateway"])
def test_up(scripts: Any, gateway: str) -> None:
    done = scripts.run("up.sh", "--gateway", gateway, "--servers", "5")
    assert done.returncode == 0, done.stderr
    calls = scripts.calls()

    def at(pattern: str) -> int:
        found = [number for number, call in enumerate(calls) if re.search(pattern, call)]
        assert found, f"no call like {pattern} in {calls}"
        return found[0]

    picker = at(r"^helm .* sim .*/deploy/modelservice ")
    order = [
        at("^kind create cluster --name epp --image kindest/node:"),
        at("gateway-api/releases"),
        at("gateway-api-inference-extension/releases"),
        at("^docker build"),
        at("^kind load docker-image epp:kind-0123456789ab --name epp"),
        picker,
        at(rf"apply -f .*/gateways/{gateway}.yaml"),
        at("rollout status"),
        at("exec deployment/sim-decode -- python"),
    ]
    assert order == sorted(order)
    assert "--set decode.replicas=5" in calls[picker]
    assert "router.epp.image.tag=kind-0123456789ab" in calls[picker]
    assert ("httpRoute.create=true" in calls[picker]) is (gateway != "envoy")
    assert ("provider.name=istio" in calls[picker]) is (gateway == "istio")
    assert any("istiod" in call for call in calls) is (gateway == "istio")
    assert any("kgateway-crds" in call for call in calls) is (gateway == "kgateway")
    assert "curl -s localhost:8080/v1/completions" in done.stdout
    for call in calls:  # every call to a cluster names the one it means
        if call.startswith("kubectl"):
            assert call.startswith("kubectl --context kind-epp "), call
        if call.startswith("helm"):
            assert call.startswith("helm --kube-context kind-epp "), call


@pytest.mark.parametrize("gateway", ["envoy", "istio", "kgateway"])
def test_files_that_are_applied_exist(scripts: Any, gateway: str) -> None:
    scripts.run("up.sh", "--gateway", gateway)
    named = [
        word
        for call in scripts.calls()
        for word in call.split()
        if word.startswith(str(KIND)) or word.startswith(str(ROOT))
    ]
    assert len(named) >= 6
    for path in named:
        assert Path(path).exists(), path


def test_second_run_keeps_the_cluster(scripts: Any) -> None:
    assert scripts.run("up.sh").returncode == 0
    first = scripts.calls()
    assert scripts.run("up.sh").returncode == 0
    second = scripts.calls()
    assert sorted(call for call in first if "create cluster" not in call) == sorted(second)


def test_down(scripts: Any) -> None:
    scripts.run("up.sh", "--name", "mine")
    scripts.calls()
    assert "there is no cluster epp" in scripts.run("down.sh").stdout
    assert scripts.run("down.sh", "--name", "mine").returncode == 0
    assert "kind delete cluster --name mine" in scripts.calls()
    assert "there is no cluster mine" in scripts.run("down.sh", "--name", "mine").stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--gateway", "nginx"], "expected envoy, istio or kgateway"),
        (["--gateway"], "--gateway needs a value"),
        (["--servers", "0"], "expected a number of at least 1"),
        (["--server", "3"], "unknown argument --server"),
    ],
)
def test_bad_arguments_change_nothing(scripts: Any, args: list[str], says: str) -> None:
    done = scripts.run("up.sh", *args)
    assert done.returncode == 1
    assert says in done.stderr
    assert scripts.calls() == []


def test_down_refuses_what_it_does_not_know(scripts: Any) -> None:
    assert "unknown argument --all" in scripts.run("down.sh", "--all").stderr
    assert "--name needs a value" in scripts.run("down.sh", "--name").stderr
    assert scripts.calls() == []


@pytest.mark.parametrize("program", ["kind", "kubectl", "helm"])
def test_what_is_missing_is_named(scripts: Any, program: str) -> None:
    (scripts.state / "bin" / program).unlink()
    done = scripts.run("up.sh")
    assert done.returncode == 1
    assert f"up.sh: {program} is not installed: see https://" in done.stderr


def test_docker_that_does_not_answer(scripts: Any) -> None:
    scripts.fails("docker info")
    done = scripts.run("up.sh")
    assert done.returncode == 1
    assert "is its daemon running" in done.stderr
    assert scripts.calls() == ["docker info"]


def test_failing_step_stops_the_script(scripts: Any) -> None:
    scripts.fails("docker build")
    assert scripts.run("up.sh").returncode != 0
    assert not any(call.startswith(("kind load", "helm")) for call in scripts.calls())


def test_gateway_that_never_answers(scripts: Any) -> None:
    scripts.fails("exec deployment")
    done = scripts.run("up.sh")
    assert done.returncode == 1
    assert "no answer through the gateway" in done.stderr
    assert sum("exec deployment" in call for call in scripts.calls()) == 30


def test_help() -> None:
    for script in ("up.sh", "down.sh"):
        done = subprocess.run([str(KIND / script), "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: ")
