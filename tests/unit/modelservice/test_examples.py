"""Every example: what it renders to is on record, valid, consistent in itself, and understood by the picker.

With EPP_GOLDEN=write the records are written again; the tests still fail where one was different, so look at the diff.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.cli import check
from epp.cli.flags import check_pool, parse_serve
from epp_simulator.options import parse
from tests.kubernetes.manifests import ROOT, Manifest, objects, pod_templates, render, validate

CHART = ROOT / "deploy/modelservice"
EXAMPLES = sorted(path.name.removesuffix(".values.yaml") for path in (CHART / "examples").glob("*.values.yaml"))


@pytest.fixture(params=EXAMPLES)
def files(request: pytest.FixtureRequest) -> dict[str, str]:
    values = yaml.safe_load((CHART / f"examples/{request.param}.values.yaml").read_text())
    return {"": request.param, **render(CHART, values, name="qwen", namespace="models")}


@pytest.fixture
def manifests(files: dict[str, str]) -> list[Manifest]:
    return [m for name, text in files.items() if name.endswith(".yaml") for m in objects(text)]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def picker_container(manifests: list[Manifest]) -> Any:
    return next(m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"].endswith("-epp"))["spec"][
        "template"
    ]["spec"]["containers"][0]


def serving_pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in of_kind(manifests, "Deployment") + of_kind(manifests, "LeaderWorkerSet"):
        if not manifest["metadata"]["name"].endswith("-epp"):
            yield from pod_templates(manifest)


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_examples_exist() -> None:
    assert {"single-node", "prefill-decode", "multi-node", "lora", "simulated"} <= set(EXAMPLES)


def test_golden(files: dict[str, str]) -> None:
    name = files.pop("")
    notes = files.pop("NOTES.txt")
    text = f"# Rendered from {name}.values.yaml, as release qwen in namespace models.\n"
    for file, content in files.items():
        if content.strip():
            text += f"---\n# {file}\n{content.strip()}\n"
    text += "---\n# NOTES.txt\n" + "".join(f"# {line}".rstrip() + "\n" for line in notes.strip().splitlines())
    golden = Path(CHART, "examples", f"{name}.rendered.yaml")
    before = golden.read_text() if golden.exists() else ""
    if os.environ.get("EPP_GOLDEN") == "write":
        golden.write_text(text)
    assert text == before


def test_objects_are_valid(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)


def test_picker_takes_its_flags_and_configuration(
    manifests: list[Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    container = picker_container(manifests)
    options, warnings = parse_serve([arg.replace("$(NAMESPACE)", "models") for arg in container["args"]])
    check_pool(options, discovery=False)
    assert not warnings
    assert options.pool_name == of_kind(manifests, "InferencePool")[0]["metadata"]["name"]
    assert options.pool_namespace == "models"

    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    file = Path(options.config_file)
    assert str(file.parent) in mounts
    text = of_kind(manifests, "ConfigMap")[0]["data"][file.name]
    (tmp_path / file.name).write_text(text)
    assert check.run([str(tmp_path / file.name)]) == 0, capsys.readouterr().err


def test_pool_selects_the_pods_that_answer_on_its_ports(manifests: list[Manifest]) -> None:
    spec = of_kind(manifests, "InferencePool")[0]["spec"]
    ports = {port["number"] for port in spec["targetPorts"]}
    answering = 0
    for pod in serving_pods(manifests):
        containers = pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
        open_ports = {port["containerPort"] for container in containers for port in container.get("ports", [])}
        headless = any("--headless" in container.get("args", []) for container in containers)
        assert selects(spec["selector"]["matchLabels"], pod["metadata"]["labels"]) is not headless
        assert (ports <= open_ports) is not headless
        answering += not headless
    assert answering
    picker_pod = next(m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"].endswith("-epp"))
    assert not selects(spec["selector"]["matchLabels"], picker_pod["spec"]["template"]["metadata"]["labels"])


def test_references_lead_somewhere(manifests: list[Manifest]) -> None:
    pool = of_kind(manifests, "InferencePool")[0]
    service = next(s for s in of_kind(manifests, "Service") if s["metadata"]["name"].endswith("-epp"))
    reference = pool["spec"]["endpointPickerRef"]
    assert reference["name"] == service["metadata"]["name"]
    assert reference["port"]["number"] in {port["port"] for port in service["spec"]["ports"]}
    picker = next(m for m in of_kind(manifests, "Deployment") if m["metadata"]["name"].endswith("-epp"))["spec"]
    assert selects(service["spec"]["selector"], picker["template"]["metadata"]["labels"])
    named = {port["name"] for port in picker_container(manifests)["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
    for route in of_kind(manifests, "HTTPRoute"):
        assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == pool["metadata"]["name"]
    for monitor in of_kind(manifests, "ServiceMonitor"):
        assert selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for monitor in of_kind(manifests, "PodMonitor"):
        assert any(
            selects(monitor["spec"]["selector"]["matchLabels"], p["metadata"]["labels"])
            for p in serving_pods(manifests)
        )


def test_rights_go_to_the_accounts_that_pods_run_as(manifests: list[Manifest]) -> None:
    accounts = {account["metadata"]["name"] for account in of_kind(manifests, "ServiceAccount")}
    roles = {(m["kind"], m["metadata"]["name"]) for m in manifests if m["kind"] in ("Role", "ClusterRole")}
    for binding in of_kind(manifests, "RoleBinding") + of_kind(manifests, "ClusterRoleBinding"):
        assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) in roles
        assert {(s["name"], s["namespace"]) for s in binding["subjects"]} == {("qwen-modelservice-epp", "models")}
    used = {t["spec"]["serviceAccountName"] for m in manifests for t in pod_templates(m)}
    assert used == accounts


def test_selectors_of_workloads_are_disjoint(manifests: list[Manifest]) -> None:
    workloads = of_kind(manifests, "Deployment")
    for one in workloads:
        for other in workloads:
            labels = other["spec"]["template"]["metadata"]["labels"]
            assert selects(one["spec"]["selector"]["matchLabels"], labels) is (one is other)


def test_simulated_servers_take_their_arguments(manifests: list[Manifest]) -> None:
    for pod in serving_pods(manifests):
        for container in pod["spec"]["containers"]:
            if container["command"] == ["epp", "sim"]:
                options = parse(container["args"], {})
                assert options.host == "0.0.0.0"
                assert options.port == container["ports"][0]["containerPort"]
