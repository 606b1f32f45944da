"""What single values do, and which are refused with a word about why."""

from __future__ import annotations

import copy
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import pytest

from epp.cli.flags import parse_serve
from tests.kubernetes.manifests import ROOT, render, validate

CHART = ROOT / "deploy/modelservice"
VLLM: dict[str, Any] = {"name": "vllm", "image": "vllm:1", "modelCommand": "vllmServe", "mountModelVolume": True}
Release = Callable[..., Any]


def decode(**values: Any) -> dict[str, Any]:
    return {"containers": [VLLM], **values}


def test_lint() -> None:
    report = helm_python.lint(CHART, strict=True)
    assert not report["errors"], report
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize(
    ("artifacts", "argument", "environment", "volume", "read_only"),
    [
        ({"uri": "hf://o/m"}, "o/m", {"HF_HOME": "/model-cache"}, {"emptyDir": {"sizeLimit": "20Gi"}}, False),
        (
            {"uri": "pvc://claim/a/b", "mountPath": "/weights"},
            "/weights/a/b",
            {},
            {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}},
            True,
        ),
        (
            {"uri": "pvc+hf://claim/hub/cache/o/m", "readOnly": False},
            "o/m",
            {"HF_HUB_CACHE": "/model-cache/hub/cache", "HF_HUB_OFFLINE": "1"},
            {"persistentVolumeClaim": {"claimName": "claim", "readOnly": False}},
            False,
        ),
        (
            {"uri": "oci://registry.example.com/m:1", "path": "files"},
            "/model-cache/files",
            {},
            {"image": {"reference": "registry.example.com/m:1", "pullPolicy": "IfNotPresent"}},
            True,
        ),
    ],
)
def test_uri(
    release: Release,
    artifacts: dict[str, Any],
    argument: str,
    environment: dict[str, str],
    volume: dict[str, Any],
    read_only: bool,
) -> None:
    rendered = release(modelArtifacts={"name": "m", **artifacts}, decode=decode())
    server = rendered.server()
    assert server["args"][0] == argument
    assert server["args"][server["args"].index("--served-model-name") + 1] == "m"
    assert environment.items() <= {e["name"]: e.get("value") for e in server["env"]}.items()
    pod = rendered.one("Deployment", "-decode")["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "model-storage", **volume}]
    assert server["volumeMounts"][0].get("readOnly", False) is read_only
    for manifest in rendered:
        validate(manifest)


def test_token_for_hugging_face_comes_from_a_secret(release: Release) -> None:
    env = release(modelArtifacts={"authSecretName": "s"}, decode=decode()).server()["env"]
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "HF_TOKEN"}}} in env


@pytest.mark.parametrize(
    ("kind", "resource"),
    [
        ("nvidia", "nvidia.com/gpu"),
        ("amd", "amd.com/gpu"),
        ("intel-gaudi", "habana.ai/gaudi"),
        ("google", "google.com/tpu"),
    ],
)
def test_accelerators_of_a_pod_are_tensor_times_local_engines(release: Release, kind: str, resource: str) -> None:
    parallelism = {"tensor": 2, "data": 3}
    rendered = release(accelerator={"type": kind}, decode=decode(parallelism=parallelism))
    server = rendered.server()
    assert server["resources"] == {"limits": {resource: "6"}, "requests": {resource: "6"}}
    assert server["args"][5:9] == ["--tensor-parallel-size", "2", "--data-parallel-size", "3"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in server["volumeMounts"]


def test_no_accelerator(release: Release) -> None:
    assert "resources" not in release(accelerator={"type": "cpu"}, decode=decode()).server()


def test_environment_of_an_accelerator(release: Release) -> None:
    env = {"amd": [{"name": "ROCM", "value": "1"}], "nvidia": [{"name": "CUDA", "value": "1"}]}
    names = [e["name"] for e in release(accelerator={"type": "amd", "env": env}, decode=decode()).server()["env"]]
    assert "ROCM" in names
    assert "CUDA" not in names


def test_shared_memory_of_the_user_is_kept(release: Release) -> None:
    container = {**VLLM, "volumeMounts": [{"name": "mine", "mountPath": "/dev/shm"}]}
    volumes = [{"name": "mine", "emptyDir": {}}]
    rendered = release(decode={"containers": [container], "volumes": volumes, "parallelism": {"tensor": 2}})
    assert [m["name"] for m in rendered.server()["volumeMounts"]] == ["mine", "model-storage"]
    pod = rendered.one("Deployment", "-decode")["spec"]["template"]["spec"]
    assert [v["name"] for v in pod["volumes"]] == ["mine", "model-storage"]


def test_first_rank_of_a_pod(release: Release, tmp_path: Path) -> None:
    """The rendered command itself, in a shell, with a program named vllm that says what it was given."""
    parallelism = {"data": 6, "dataLocal": 3, "workers": 2}
    server = release(multinode=True, decode=decode(parallelism=parallelism)).server()
    fake = tmp_path / "vllm"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    args = [arg.replace("$(LWS_LEADER_ADDRESS)", "leader.local") for arg in server["args"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LWS_WORKER_INDEX": "1"}
    said = subprocess.run(
        [*server["command"], *args], env=environment, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert said[:2] == ["serve", "Qwen/Qwen3-0.6B"]
    assert said[said.index("--data-parallel-start-rank") + 1] == "3"
    assert said[said.index("--data-parallel-size-local") + 1] == "3"
    assert said[said.index("--data-parallel-address") + 1] == "leader.local"


def test_roles_have_groups_of_their_own_size(release: Release) -> None:
    rendered = release(
        multinode=True,
        decode=decode(parallelism={"workers": 2}, replicas=3),
        prefill=decode(create=True, parallelism={"workers": 4, "data": 4}),
    )
    assert rendered.one("LeaderWorkerSet", "-decode")["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert rendered.one("LeaderWorkerSet", "-decode")["spec"]["replicas"] == 3
    assert rendered.one("LeaderWorkerSet", "-prefill")["spec"]["leaderWorkerTemplate"]["size"] == 4
    for manifest in rendered:
        validate(manifest)


def test_proxy_is_there_with_prefill_only(release: Release) -> None:
    alone = release(decode=decode()).one("Deployment", "-decode")["spec"]["template"]["spec"]
    assert "initContainers" not in alone

    proxy = {
        "connector": "mooncake",
        "secure": True,
        "certPath": "/certs",
        "prefillerUseTLS": True,
        "extraArgs": ["--x=1"],
    }
    both = release(decode=decode(), prefill=decode(create=True), routing={"proxy": proxy})
    sidecar = both.one("Deployment", "-decode")["spec"]["template"]["spec"]["initContainers"][0]
    assert sidecar["restartPolicy"] == "Always"
    assert {
        "--kv-connector=mooncake",
        "--secure-proxy=true",
        "--cert-path=/certs",
        "--enable-tls=prefiller",
        "--x=1",
    } <= set(sidecar["args"])
    assert both.server()["ports"][0]["containerPort"] == 8200
    assert both.server("prefill")["ports"][0]["containerPort"] == 8000
    assert "initContainers" not in both.one("Deployment", "-prefill")["spec"]["template"]["spec"]

    without = release(decode=decode(), prefill=decode(create=True), routing={"proxy": {"enabled": False}})
    assert without.server()["ports"][0]["containerPort"] == 8000


def test_adapters(release: Release) -> None:
    adapters = [{"name": "a", "uri": "hf://o/a"}, {"name": "b", "uri": "/adapters/b"}]
    rendered = release(modelArtifacts={"loraAdapters": adapters}, decode=decode())
    args = rendered.server()["args"]
    assert args[args.index("--enable-lora") :] == [
        "--enable-lora",
        "--max-loras",
        "2",
        "--lora-modules",
        "a=o/a",
        "b=/adapters/b",
    ]
    assert "lora-affinity-scorer" in rendered.one("ConfigMap")["data"]["default-plugins.yaml"]


def test_commands(release: Release) -> None:
    custom = {"name": "s", "image": "i", "modelCommand": "custom", "command": ["run"], "args": ["--x"]}
    server = release(decode={"containers": [custom]}).server()
    assert (server["command"], server["args"]) == (["run"], ["--x"])
    default = {"name": "s", "image": "i", "modelCommand": "imageDefault"}
    server = release(decode={"containers": [default]}).server()
    assert "command" not in server
    assert "args" not in server
    assert "volumeMounts" not in server


def test_probes(release: Release) -> None:
    own = {**VLLM, "readinessProbe": {"tcpSocket": {"port": 8000}}}
    server = release(decode={"containers": [own], "probes": {"startupSeconds": 61}}).server()
    assert server["readinessProbe"] == {"tcpSocket": {"port": 8000}}
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] == 70
    assert "livenessProbe" not in release(decode=decode(probes={"enabled": False})).server()


def test_servers_only(release: Release) -> None:
    kinds = {manifest["kind"] for manifest in release(router={"create": False}, decode=decode())}
    assert kinds == {"ServiceAccount", "Deployment"}


def test_without_a_pool_the_picker_selects_pods_itself(release: Release) -> None:
    ports = [{"number": 8000}, {"number": 8001}]
    router = {"inferencePool": {"create": False}, "modelServers": {"targetPorts": ports}}
    rendered = release(router=router, decode=decode(), modelArtifacts={"labels": {"team": "search"}})
    assert not rendered.has("InferencePool")
    args = rendered.one("Deployment", "-epp")["spec"]["template"]["spec"]["containers"][0]["args"]
    options, _ = parse_serve([arg.replace("$(NAMESPACE)", "models") for arg in args])
    assert options.endpoint_target_ports == (8000, 8001)
    labels = rendered.one("Deployment", "-decode")["spec"]["template"]["metadata"]["labels"]
    assert dict(pair.split("=") for pair in options.endpoint_selector.split(",")).items() <= labels.items()
    assert labels["team"] == "search"


def test_replicas_of_the_picker_elect_a_leader(release: Release) -> None:
    rendered = release(router={"epp": {"replicas": 3}}, decode=decode())
    args = rendered.one("Deployment", "-epp")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert parse_serve([arg.replace("$(NAMESPACE)", "n") for arg in args])[0].ha_enable_leader_election
    assert any(rule["resources"] == ["leases"] for rule in rendered.one("Role", "-epp")["rules"])

    flags = {"ha-enable-leader-election": False, "v": 4, "drain-timeout": "60s"}
    rendered = release(router={"epp": {"replicas": 2, "flags": flags}}, decode=decode())
    args = rendered.one("Deployment", "-epp")["spec"]["template"]["spec"]["containers"][0]["args"]
    options, _ = parse_serve([arg.replace("$(NAMESPACE)", "n") for arg in args])
    assert (options.ha_enable_leader_election, options.v, float(options.drain_timeout)) == (False, 4, 60.0)


@pytest.mark.parametrize(
    ("replicas", "flags", "election"),
    [
        (1, {}, False),
        (3, {}, True),
        (3, {"ha-enable-leader-election": False}, False),
        (1, {"ha-enable-leader-election": True}, True),
    ],
)
def test_a_rollout_of_the_picker_comes_to_an_end(
    release: Release, replicas: int, flags: dict[str, bool], election: bool
) -> None:
    """Followers are never ready: a rollout that waits for them would hang. Others leave when the next one is ready."""
    rendered = release(router={"epp": {"replicas": replicas, "flags": flags}}, decode=decode())
    spec = rendered.one("Deployment", "-epp")["spec"]
    rolling = {"maxSurge": "100%", "maxUnavailable": "100%"} if election else {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    options, _ = parse_serve(
        [a.replace("$(NAMESPACE)", "n") for a in spec["template"]["spec"]["containers"][0]["args"]]
    )
    assert options.ha_enable_leader_election is election
    rules = rendered.one("Role", "-epp")["rules"]
    assert any(rule["resources"] == ["leases"] for rule in rules) is election


def test_metrics_without_questions_to_the_api_server(release: Release) -> None:
    monitoring = {"prometheus": {"enabled": True, "auth": {"enabled": False}}}
    rendered = release(router={"monitoring": monitoring}, decode=decode())
    assert not rendered.has("ClusterRole")
    assert "bearerTokenFile" not in rendered.one("ServiceMonitor")["spec"]["endpoints"][0]
    args = rendered.one("Deployment", "-epp")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--metrics-endpoint-auth=false" in args


def test_changed_configuration_rolls_out(release: Release) -> None:
    def checksum(**epp: Any) -> tuple[str, dict[str, str]]:
        rendered = release(router={"epp": epp}, decode=decode())
        pod = rendered.one("Deployment", "-epp")["spec"]["template"]
        return pod["metadata"]["annotations"]["checksum/config"], rendered.one("ConfigMap")["data"]

    before, _ = checksum()
    after, data = checksum(pluginsConfigFile="mine.yaml", pluginsCustomConfig={"mine.yaml": "a: b"})
    assert before != after
    assert data["mine.yaml"] == "a: b"
    assert before == checksum()[0]


def test_route(release: Release) -> None:
    route = {"create": True, "baseModel": "o/m", "inferenceGatewayName": "g", "inferenceGatewayNamespace": "infra"}
    rendered = release(httpRoute=route, decode=decode())
    spec = rendered.one("HTTPRoute")["spec"]
    assert spec["parentRefs"][0]["namespace"] == "infra"
    assert spec["rules"][0]["matches"][0]["headers"][0]["value"] == "o/m"
    validate(rendered.one("HTTPRoute"))


def test_values_of_llm_d_are_accepted(release: Release) -> None:
    """The keys of the P/D values that llm-d's modelservice chart documents."""
    container = {
        "name": "vllm",
        "image": "ghcr.io/llm-d/llm-d-cuda:v0.8.0",
        "modelCommand": "vllmServe",
        "args": ["--enforce-eager"],
        "env": [{"name": "UCX_TLS", "value": "tcp"}],
        "ports": [{"containerPort": 5600, "protocol": "TCP"}],
        "resources": {"limits": {"memory": "16Gi"}, "requests": {"cpu": "16"}},
        "mountModelVolume": True,
        "volumeMounts": [{"name": "metrics-volume", "mountPath": "/.config"}],
    }
    role = {
        "create": True,
        "replicas": 1,
        "parallelism": {"tensor": 1, "data": 1, "dataLocal": 1, "workers": 1},
        "containers": [container],
        "volumes": [{"name": "metrics-volume", "emptyDir": {}}],
    }
    rendered = release(
        multinode=False,
        modelArtifacts={
            "name": "facebook/opt-125m",
            "uri": "hf://{{ .Values.modelArtifacts.name }}",
            "size": "20Gi",
            "authSecretName": "hf-token",
            "mountPath": "/model-cache",
            "labels": {"llm-d.ai/inference-serving": "true", "llm-d.ai/model": "opt"},
        },
        accelerator={"type": "nvidia"},
        routing={
            "servicePort": 8000,
            "proxy": {"enabled": True, "targetPort": 8200, "connector": "nixlv2", "secure": False},
        },
        decode=copy.deepcopy(role),
        prefill=copy.deepcopy(role),
    )
    for manifest in rendered:
        validate(manifest)
    assert rendered.server()["args"][0] == "facebook/opt-125m"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modelArtifacts": {"uri": "s3://bucket/model"}}, "uri"),
        ({"modelArtifacts": {"uri": "pvc+hf://claim/model"}}, "no ORG/MODEL at its end"),
        ({"accelerator": {"type": "abacus"}}, "accelerator.type: abacus is none of"),
        ({"multinode": True}, "decode.parallelism.workers: 1 pod is no group"),
        ({"decode": decode(parallelism={"workers": 2})}, "need multinode: true"),
        ({"decode": decode(parallelism={"data": 4, "dataLocal": 2})}, "data 4 is not dataLocal 2 in each of 1 pods"),
        (
            {"multinode": True, "decode": decode(parallelism={"data": 5, "workers": 2})},
            "data 5 is not dataLocal 2 in each",
        ),
        ({"decode": {"containers": [{"name": "a", "image": "i", "modelCommand": "custom"}]}}, "custom, and no command"),
        ({"decode": {"containers": [{"name": "a", "modelCommand": "imageDefault"}]}}, "a has no image"),
        ({"decode": {"containers": [{"name": "a", "modelCommand": "vllm"}]}}, "modelCommand"),
        ({"decode": {"replica": 3}}, "replica"),
        ({"routing": {"servicePort": 70000}}, "servicePort"),
        ({"router": {"inferencePool": {"failureMode": "Open"}}}, "failureMode"),
        ({"router": {"epp": {"pluginsConfigFile": "absent.yaml"}}}, "absent.yaml is not among"),
        ({"router": {"inferencePool": {"create": False}}, "httpRoute": {"create": True}}, "a route needs the pool"),
        ({"router": {"modelServers": {"targetPorts": [{"number": n} for n in range(8000, 8009)]}}}, "targetPorts"),
    ],
)
def test_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(helm_python.HelmError) as caught:
        render(CHART, values, name="qwen", namespace="models")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("InferencePool", lambda m: m["spec"].update(selectors={})),
        ("InferencePool", lambda m: m["spec"]["targetPorts"].append({"number": 0})),
        ("InferencePool", lambda m: m["spec"]["selector"]["matchLabels"].update({"a b": "c"})),
        ("HTTPRoute", lambda m: m["spec"]["rules"][0].update(timeouts={"request": "5 minutes"})),
        ("LeaderWorkerSet", lambda m: m["spec"]["leaderWorkerTemplate"].update(restartPolicy="Always")),
        ("LeaderWorkerSet", lambda m: m["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"].update(container=[])),
        ("LeaderWorkerSet", lambda m: m.update(status={})),
        ("LeaderWorkerSet", lambda m: m["metadata"].update(labels={"a": 1})),
        ("Deployment", lambda m: m["spec"]["template"]["spec"].update(restartpolicy="Always")),
        ("Role", lambda m: m["rules"][0].update(verbs="get")),
    ],
)
def test_checks_of_manifests_see_mistakes(release: Release, kind: str, change: Callable[[Any], None]) -> None:
    rendered = release(multinode=True, httpRoute={"create": True}, decode=decode(parallelism={"workers": 2}))
    manifest = copy.deepcopy(next(m for m in rendered if m["kind"] == kind))
    validate(manifest)
    change(manifest)
    with pytest.raises(jsonschema.ValidationError):
        validate(manifest)
