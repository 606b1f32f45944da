"""What the manifests expect of the image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

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
