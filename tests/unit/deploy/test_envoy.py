"""Envoy's configurations, read by a real Envoy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
EXT_PROC = "envoy.filters.http.ext_proc"


def validate(bootstrap: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    envoy = Path(sys.executable).with_name("envoy")
    binary = str(envoy) if envoy.exists() else shutil.which("envoy")
    assert binary is not None
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(bootstrap))
    command = [binary, "--mode", "validate", "-c", str(file), "--log-level", "warn"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def bootstrap(release: Any) -> Any:
    return yaml.safe_load(release.one("ConfigMap", "-envoy")["data"]["envoy.yaml"])


def cluster(envoy: Any) -> Any:
    return next(c for c in envoy["static_resources"]["clusters"] if c["name"] == "picker")


def manager(envoy: Any) -> Any:
    return envoy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def ext_proc(envoy: Any) -> Any:
    return next(f["typed_config"] for f in manager(envoy)["http_filters"] if f["name"] == EXT_PROC)


@pytest.mark.parametrize("name", ["chart standalone", "chart standalone-sidecar"])
def test_envoy_takes_what_the_chart_renders(name: str, named: Callable[[str], Any], tmp_path: Path) -> None:
    done = validate(bootstrap(named(name)), tmp_path)
    assert done.returncode == 0, done.stderr


def test_envoy_refuses_what_is_wrong(named: Callable[[str], Any], tmp_path: Path) -> None:
    envoy = bootstrap(named("chart standalone"))
    ext_proc(envoy)["processing_mode"]["response_trailer_mode"] = "SOMETIMES"
    assert validate(envoy, tmp_path).returncode != 0


def test_what_was_asked_for_is_in_the_bootstrap(named: Callable[[str], Any]) -> None:
    service, sidecar = bootstrap(named("chart standalone")), bootstrap(named("chart standalone-sidecar"))
    assert ext_proc(service)["processing_mode"]["response_body_mode"] == "NONE"
    assert ext_proc(sidecar)["processing_mode"]["response_body_mode"] == "FULL_DUPLEX_STREAMED"
    address = cluster(service)["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    pods = named("chart standalone").one("Service", "-pods")
    assert address["socket_address"] == {"address": pods["metadata"]["name"], "port_value": 9002}
    # An Envoy that asks each picker for its health finds those that are not ready, too.
    assert pods["spec"]["publishNotReadyAddresses"] is True
    assert cluster(service)["common_lb_config"] == {
        "healthy_panic_threshold": {"value": 0},
        "update_merge_window": "0s",
    }
    assert "transport_socket" in cluster(service)
    assert "transport_socket" not in cluster(sidecar)  # secure-serving is off there
    for name, envoy in (("chart standalone", service), ("chart standalone-sidecar", sidecar)):
        assert named(name).options.health_checking
        assert cluster(envoy)["health_checks"][0]["grpc_health_check"]


def test_the_service_differs_from_the_sidecar_in_the_picker_alone() -> None:
    sidecar = yaml.safe_load((ROOT / "deploy/envoy/standalone.yaml").read_text())
    service = yaml.safe_load((ROOT / "deploy/kustomize/components/envoy-service/envoy.yaml").read_text())
    ours, theirs = cluster(service), cluster(sidecar)
    differences = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert differences == {"type", "dns_refresh_rate", "common_lb_config", "load_assignment"}
    for envoy in (sidecar, service):
        envoy["static_resources"]["clusters"] = [
            c for c in envoy["static_resources"]["clusters"] if c["name"] != "picker"
        ]
    assert service == sidecar


@pytest.mark.parametrize("source", ["chart", "component"])
def test_envoy_takes_the_light_mode_of_istio(source: str, named: Callable[[str], Any], tmp_path: Path) -> None:
    if source == "chart":
        light = named("chart istio").one("EnvoyFilter")
    else:
        light = yaml.safe_load((ROOT / "deploy/kustomize/components/istio-light-mode/envoy-filter.yaml").read_text())
    value = light["spec"]["configPatches"][0]["patch"]["value"]
    envoy = yaml.safe_load((ROOT / "deploy/envoy/standalone.yaml").read_text())
    manager(envoy)["route_config"]["virtual_hosts"][0]["routes"][0].update(value)
    done = validate(envoy, tmp_path)
    assert done.returncode == 0, done.stderr
    # Complete, so that nothing is lost when it takes the place of what Istio has there.
    mode = value["typed_per_filter_config"][EXT_PROC]["overrides"]["processing_mode"]
    assert mode == ext_proc(envoy)["processing_mode"] | {"response_body_mode": "NONE"}
