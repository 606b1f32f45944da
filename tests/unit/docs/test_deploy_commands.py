"""The Helm commands and the kustomization that the pages print, rendered."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kubernetes.manifests import ROOT, objects, render

PAGES = ("docs/deploy.md", "docs/modelservice.md", "deploy/README.md")


def installs() -> list[str]:
    """Every `helm install`, on one line."""
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    return re.findall(r"^ {4}(helm install .*)", re.sub(r"\\\n\s*", "", text), re.M)


def merged(into: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        old = into.get(key)
        into[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return into


@pytest.mark.parametrize("command", installs())
def test_helm_install(command: str) -> None:
    _, _, name, chart, *rest = shlex.split(command)
    values: dict[str, Any] = {}
    for flag, word in zip(rest[::2], rest[1::2], strict=True):
        if flag == "-f":
            merged(values, yaml.safe_load((ROOT / word).read_text()))
            continue
        path, _, text = word.partition("=")
        nested: Any = text if flag == "--set-string" else yaml.safe_load(text)
        for key in reversed(path.split(".")):
            nested = {key: nested}
        merged(values, nested)
    rendered = render(ROOT / chart, values, name=name, namespace="models")
    found = [manifest for file, text in rendered.items() if file.endswith(".yaml") for manifest in objects(text)]
    assert {"Deployment", "InferencePool"} <= {manifest["kind"] for manifest in found}
    assert all(
        manifest["metadata"]["name"].startswith(name) for manifest in found if manifest["kind"] == "InferencePool"
    )


def test_every_install_is_tried() -> None:
    assert len(installs()) == 3


def test_the_kustomization_to_copy(tmp_path: Path) -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    block = re.search(r"^```yaml\n(apiVersion: kustomize.*?)^```", page, re.S | re.M)
    assert block is not None
    relative = os.path.relpath(ROOT / "deploy", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(block[1].replace("deploy/", f"{relative}/"))
    (tmp_path / "epp.yaml").write_text("kind: EndpointPickerConfig\n")
    kubectl = str(Path(sys.executable).with_name("kubectl"))
    done = subprocess.run([kubectl, "kustomize", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    release = {manifest["kind"]: manifest for manifest in objects(done.stdout)}
    assert release["InferencePool"]["metadata"]["name"] == "qwen-llm"
    assert release["InferencePool"]["spec"]["selector"]["matchLabels"] == {"app": "qwen"}
    image = release["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "registry.example.com/epp:0.1.0"
