"""What is true of everything that ships: valid, understood by the picker, locked down, consistent in itself."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from epp.cli import check as check_command
from epp.cli.serving import LAST_STREAMS_SECONDS
from epp.transport.health import SERVICES
from tests.kubernetes.manifests import ROOT

Manifest = dict[str, Any]


def selects(selector: Manifest, labels: Manifest) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def test_every_object_is_valid(release: Any, check: Callable[[Manifest], None]) -> None:
    for manifest in release:
        check(manifest)


def test_invalid_objects_are_found(named: Callable[[str], Any], check: Callable[[Manifest], None]) -> None:
    pool = named("base").one("InferencePool")
    pool["spec"]["targetPort"] = 8000
    with pytest.raises(jsonschema.ValidationError):
        check(pool)
    objective = named("overlay multi-lora").one("InferenceObjective", "batch")
    objective["spec"]["priority"] = "high"
    with pytest.raises(jsonschema.ValidationError):
        check(objective)


def test_names_are_unique(release: Any) -> None:
    names = [(m["kind"], m["metadata"]["name"]) for m in release]
    assert len(names) == len(set(names))


def test_the_picker_takes_its_arguments(release: Any) -> None:
    options = release.options
    assert not any("$(" in argument for argument in release.arguments)
    assert options.health_checking or release.all("InferencePool")
    assert options.log_format == "json"
    assert (options.pool_name == "") != (options.endpoint_selector == "")


def test_the_picker_takes_its_configuration(release: Any, tmp_path: Path) -> None:
    file = tmp_path / "epp.yaml"
    file.write_text(release.configuration)
    flags = ["--allow-experimental-plugins"] if release.options.allow_experimental_plugins else []
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = check_command.run([*flags, str(file)])
    assert status == 0, said.getvalue()


def test_the_pool_is_the_one_that_is_served(release: Any) -> None:
    options = release.options
    if not options.pool_name:
        assert not release.all("InferencePool")
        return
    pool = release.one("InferencePool")
    assert options.pool_name == pool["metadata"]["name"]
    assert options.pool_group == pool["apiVersion"].partition("/")[0]
    picker = pool["spec"]["endpointPickerRef"]
    service = release.one("Service", picker["name"])
    assert picker["port"]["number"] in [port["port"] for port in service["spec"]["ports"]]
    for kind in ("InferenceObjective", "InferenceModelRewrite"):
        assert all(m["spec"]["poolRef"]["name"] == options.pool_name for m in release.all(kind))
    for route in release.all("HTTPRoute"):
        assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == options.pool_name


def test_ports_are_those_the_picker_listens_on(release: Any) -> None:
    options = release.options
    ports = {port["name"]: port["containerPort"] for port in release.container["ports"]}
    assert ports["grpc"] == options.grpc_port
    assert ports["grpc-health"] == options.grpc_health_port
    assert ports["metrics"] == options.metrics_port
    for probe in ("livenessProbe", "readinessProbe"):
        grpc = release.container[probe]["grpc"]
        assert grpc["port"] == options.grpc_health_port
        assert grpc["service"] in SERVICES


def test_selectors_find_the_pods_they_mean(release: Any) -> None:
    pods = {d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"] for d in release.all("Deployment")}
    for deployment in release.all("Deployment"):
        assert selects(deployment["spec"]["selector"]["matchLabels"], pods[deployment["metadata"]["name"]])
    for service in release.all("Service"):
        found = [name for name, labels in pods.items() if selects(service["spec"]["selector"], labels)]
        assert len(found) == 1, f"{service['metadata']['name']} selects {found}"
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        for manifest in release.all(kind):
            assert selects(manifest["spec"]["selector"]["matchLabels"], pods[release.picker["metadata"]["name"]])
    for monitor in release.all("ServiceMonitor"):
        wanted, port = monitor["spec"]["selector"]["matchLabels"], monitor["spec"]["endpoints"][0]["port"]
        services = [s for s in release.all("Service") if selects(wanted, s["metadata"]["labels"])]
        assert any(port == p["name"] for s in services for p in s["spec"]["ports"])


def test_ports_of_services_exist(release: Any) -> None:
    for service in release.all("Service"):
        for deployment in release.all("Deployment"):
            template = deployment["spec"]["template"]
            if selects(service["spec"]["selector"], template["metadata"]["labels"]):
                there = {p["name"] for c in template["spec"]["containers"] for p in c["ports"]}
                assert {p["targetPort"] for p in service["spec"]["ports"]} <= there


def test_volumes_are_there(release: Any) -> None:
    maps = {m["metadata"]["name"] for m in release.all("ConfigMap")}
    for pod in release.pods():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps


def test_pods_are_locked_down(release: Any) -> None:
    for pod in release.pods():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] is True
            assert own["allowPrivilegeEscalation"] is False
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert not re.search(r":latest$|^[^:]+$", container["image"])


def test_the_picker_writes_to_no_volume(release: Any) -> None:
    """What it writes for a moment goes to the image's $TMPDIR, which is memory that every container has."""
    assert all(mount["readOnly"] for mount in release.container["volumeMounts"])
    temporary = re.search(r"^ENV TMPDIR=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert temporary is not None
    assert temporary[1] == "/dev/shm"


def test_there_is_time_to_drain(release: Any) -> None:
    spec = release.picker["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 130
    assert release.options.drain_timeout + LAST_STREAMS_SECONDS < spec["terminationGracePeriodSeconds"]


def test_rights_are_those_that_are_needed(release: Any) -> None:
    rules = [rule for role in release.all("Role") for rule in role["rules"]]
    granted = {(group, resource) for r in rules for group in r["apiGroups"] for resource in r["resources"]}
    options = release.options
    assert ("", "pods") in granted
    assert (("coordination.k8s.io", "leases") in granted) == options.ha_enable_leader_election
    if options.pool_name:
        assert ("inference.networking.k8s.io", "inferencepools") in granted
        assert ("llm-d.ai", "inferenceobjectives") in granted
        assert ("llm-d.ai", "inferencemodelrewrites") in granted
    verbs = {verb for rule in rules if rule["apiGroups"] != ["coordination.k8s.io"] for verb in rule["verbs"]}
    assert verbs == {"get", "list", "watch"}
    clusterwide = {
        resource
        for role in release.all("ClusterRole")
        for rule in role["rules"]
        for resource in rule.get("resources", [])
    }
    assert clusterwide == ({"tokenreviews", "subjectaccessreviews"} if options.metrics_endpoint_auth else set())
    account = release.picker["spec"]["template"]["spec"]["serviceAccountName"]
    for binding in release.all("RoleBinding"):
        assert [subject["name"] for subject in binding["subjects"]] == [account]
        assert binding["roleRef"]["name"] in [role["metadata"]["name"] for role in release.all("Role")]


def test_replicas_fit_the_way_they_work_together(release: Any) -> None:
    spec, options = release.picker["spec"], release.options
    rolling = spec["strategy"]["rollingUpdate"]
    budgets = release.all("PodDisruptionBudget")
    if options.ha_enable_leader_election:
        assert spec["replicas"] > 1
        # Followers are never ready: neither a rollout nor an eviction may wait for them.
        assert rolling["maxUnavailable"] == "100%"
        assert not budgets
    else:
        assert rolling["maxUnavailable"] == 0
        assert len(budgets) == (spec["replicas"] > 1)
