"""Kustomize: components combine, names follow, a changed configuration rolls out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kustomize"
SETS = {
    "leader-election": ["leader-election", "metrics-auth", "monitoring", "network-policy", "istio", "istio-light-mode"],
    "active-active": ["active-active", "monitoring", "istio", "network-policy"],
    "standalone": ["without-pool", "envoy-service", "active-active"],
}


@pytest.fixture
def build(tmp_path: Path, kustomize: Callable[[Path], Any]) -> Callable[..., Any]:
    def of(components: list[str], **more: Any) -> Any:
        relative = os.path.relpath(FOLDER, tmp_path.resolve())
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"{relative}/base"],
            "components": [
                f"{relative}/../envoy" if name == "envoy" else f"{relative}/components/{name}" for name in components
            ],
            **more,
        }
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(document))
        return kustomize(tmp_path)

    return of


def test_every_component_is_in_a_set_here() -> None:
    components = {path.parent.name for path in FOLDER.glob("components/*/kustomization.yaml")}
    assert components == {name for names in SETS.values() for name in names}


@pytest.mark.parametrize("name", SETS)
def test_components_combine(name: str, build: Callable[..., Any], check: Callable[[Any], None]) -> None:
    release = build(SETS[name])
    for manifest in release:
        check(manifest)
    options = release.options
    assert options.ha_enable_leader_election == ("leader-election" in SETS[name])
    assert options.metrics_endpoint_auth == ("metrics-auth" in SETS[name])
    assert bool(options.endpoint_selector) == ("without-pool" in SETS[name])
    rules = [rule for role in [*release.all("Role"), *release.all("ClusterRole")] for rule in role["rules"]]
    granted = {resource: set(rule["verbs"]) for rule in rules for resource in rule.get("resources", [])}
    lease = {"get", "create", "update"} if options.ha_enable_leader_election else None
    assert granted.get("leases") == lease
    reviews = {"create"} if options.metrics_endpoint_auth else None
    assert (granted.get("tokenreviews"), granted.get("subjectaccessreviews")) == (reviews, reviews)


def test_names_follow_a_prefix(build: Callable[..., Any]) -> None:
    release = build(["envoy", "istio"], namePrefix="blue-", namespace="models")
    assert release.options.pool_name == release.one("InferencePool")["metadata"]["name"] == "blue-llm"
    assert release.one("InferencePool")["spec"]["endpointPickerRef"]["name"] == "blue-llm-epp"
    assert release.one("DestinationRule")["spec"]["host"] == "blue-llm-epp"
    assert release.one("RoleBinding")["subjects"][0] == {
        "kind": "ServiceAccount", "name": "blue-llm-epp", "namespace": "models",
    }  # fmt: skip
    assert release.configuration.startswith("# What the picker does")


def test_a_changed_configuration_replaces_the_pods(
    tmp_path: Path, build: Callable[..., Any], named: Callable[[str], Any]
) -> None:
    def volume(release: Any) -> str:
        text: str = release.picker["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"]
        return text

    (tmp_path / "epp.yaml").write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n")
    generator = {"name": "llm-epp", "behavior": "replace", "files": ["epp.yaml"]}
    changed = build([], configMapGenerator=[generator])
    assert changed.configuration != named("base").configuration
    assert volume(changed) != volume(named("base"))


def test_the_overlays_of_guides_are_the_configurations_that_ship() -> None:
    for overlay, config in {
        "optimized-baseline": "optimized-baseline",
        "pd": "pd",
        "tiered-cpu": "tiered-prefix-cache",
    }.items():
        ours = (FOLDER / f"overlays/{overlay}/epp.yaml").read_text()
        assert yaml.safe_load(ours) == yaml.safe_load((ROOT / f"configs/{config}.yaml").read_text())
    base = (FOLDER / "base/epp.yaml").read_text()
    assert yaml.safe_load(base) == yaml.safe_load((ROOT / "configs/default-epp.yaml").read_text())


def test_simulated_servers_take_their_arguments(named: Callable[[str], Any]) -> None:
    from epp_simulator.options import parse

    servers = named("overlay simulated-servers").one("Deployment", "-servers")["spec"]["template"]
    container = servers["spec"]["containers"][0]
    options = parse(container["args"], {})
    assert options.port == container["ports"][0]["containerPort"]
    selector = named("overlay simulated-servers").options.endpoint_selector
    assert dict([selector.split("=")]).items() <= servers["metadata"]["labels"].items()
