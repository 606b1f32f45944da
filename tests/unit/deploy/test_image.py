"""What the manifests expect of the image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from epp.cli.flags import parse_serve

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_image_can_do_what_the_manifests_ask_for(named: Callable[[str], Any]) -> None:
    extras = re.search(r"'\.\[([^]]+)\]'", DOCKERFILE)
    assert extras is not None
    assert {"kubernetes", "otel"} <= set(extras[1].split(","))
    entrypoint = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)
    assert entrypoint is not None
    assert json.loads(entrypoint[1]) == ["epp", "serve"]  # manifests give arguments alone
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)
    assert user is not None
    context = named("base").picker["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))
    ports = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.M)
    assert ports is not None
    assert {str(p["containerPort"]) for p in named("base").container["ports"]} == set(ports[1].split())


def test_the_image_copies_what_it_installs() -> None:
    kept_out = (ROOT / ".dockerignore").read_text().split()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M):
        for name in source.split():
            assert (ROOT / name).exists()
            assert name.partition("/")[0] not in kept_out


def test_versions_are_the_same_everywhere() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    chart = yaml.safe_load((ROOT / "deploy/charts/epp/Chart.yaml").read_text())
    assert chart["appVersion"] == version[1]
    for path in (ROOT / "deploy/kustomize").glob("*/**/kustomization.yaml"):
        for image in yaml.safe_load(path.read_text()).get("images", []):
            assert image["newTag"] == version[1]


def test_the_conformance_suite_can_use_its_own_manifests() -> None:
    text = (ROOT / "deploy/conformance/Dockerfile").read_text()
    entrypoint = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.M)[0])
    copied = re.search(r"^COPY (\S+) (\S+)$", text, re.M)
    assert copied is not None
    suite = ["--pool-name", "primary", "--pool-namespace", "inference-conformance-app-backend"]
    suite += ["--zap-encoder", "json", "--grpc-port", "9002", "--grpc-health-port", "9003"]
    options, warnings = parse_serve([*entrypoint[2:], *suite])
    assert not warnings
    assert options.config_file == copied[2]
    assert options.pool_name == "primary"
    plugins = {plugin["type"] for plugin in yaml.safe_load((ROOT / copied[1]).read_text())["plugins"]}
    assert {"header-based-testing-filter", "destination-endpoint-served-verifier"} <= plugins
