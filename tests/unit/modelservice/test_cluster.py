"""The rendered objects in a cluster: the picker runs with the chart's arguments against a Kubernetes API server.

It finds the pods that take requests, and asks for nothing that the chart's Role does not allow.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from epp.cli.flags import parse_serve
from epp.cli.serving import Picker
from tests.kubernetes.api_server import PODS, POOLS, ApiServer, Object, pod
from tests.kubernetes.manifests import ROOT, Manifest, objects, pod_templates, render

CHART = ROOT / "deploy/modelservice"
NAMESPACE = "models"


def rendered(example: str) -> list[Manifest]:
    values = yaml.safe_load((CHART / f"examples/{example}.values.yaml").read_text())
    files = render(CHART, values, name="qwen", namespace=NAMESPACE)
    return [manifest for name, text in files.items() if name != "NOTES.txt" for manifest in objects(text)]


def cluster_pods(manifests: list[Manifest]) -> Iterator[tuple[Object, bool]]:
    """One replica of every workload, as its controller would create it, and whether it answers requests."""
    numbers = itertools.count(1)
    for manifest in manifests:
        for place, template in enumerate(pod_templates(manifest)):
            container = template["spec"]["containers"][0]
            answers = container["name"] != "epp" and "--headless" not in container.get("args", [])
            name = f"{manifest['metadata']['name']}-{place}"
            labels = template["metadata"]["labels"]
            yield pod(name, f"127.0.9.{next(numbers)}", labels=labels), answers


def allowed(request: str, manifests: list[Manifest]) -> bool:
    """Would the chart's Role let the picker do this in its namespace?"""
    method, _, target = request.partition(" ")
    path, query = urlsplit(target).path.strip("/").split("/"), parse_qs(urlsplit(target).query)
    group, rest = ("", path[2:]) if path[0] == "api" else (path[1], path[3:])
    if not rest:
        return method == "GET"  # which kinds a group has: open to whoever has signed in
    if rest[:2] != ["namespaces", NAMESPACE]:
        return False
    resource, named = rest[2], len(rest) > 3
    verb = {"GET": "get" if named else "list", "POST": "create", "PUT": "update", "PATCH": "patch"}.get(
        method, "delete"
    )
    if verb == "list" and query.get("watch"):
        verb = "watch"
    rules = [rule for manifest in manifests if manifest["kind"] == "Role" for rule in manifest["rules"]]
    return any(
        group in rule["apiGroups"] and "/".join([resource, *rest[4:]]) in rule["resources"] and verb in rule["verbs"]
        for rule in rules
    )


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        (f"GET /api/v1/namespaces/{NAMESPACE}/pods?watch=1", True),
        (f"DELETE /api/v1/namespaces/{NAMESPACE}/pods/p", False),
        ("GET /api/v1/pods", False),
        ("GET /api/v1/namespaces/other/pods", False),
        (f"GET /api/v1/namespaces/{NAMESPACE}/secrets", False),
        (f"POST /apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases", False),
        ("GET /apis/llm-d.ai/v1alpha2", True),
    ],
)
def test_what_the_role_allows(request_line: str, expected: bool) -> None:
    assert allowed(request_line, rendered("simulated")) is expected


@pytest.mark.parametrize("example", ["simulated", "prefill-decode", "multi-node", "wide-expert-parallel"])
async def test_picker_finds_the_servers(example: str, tmp_path: Path) -> None:
    manifests = rendered(example)
    picker_pod = next(m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"].endswith("-epp"))
    container = picker_pod["spec"]["template"]["spec"]["containers"][0]
    config = tmp_path / "plugins.yaml"
    config.write_text(next(m for m in manifests if m["kind"] == "ConfigMap")["data"]["default-plugins.yaml"])
    async with ApiServer(namespace=NAMESPACE).serving() as server:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(server.kubeconfig("picker"))
        arguments = [arg for arg in container["args"] if not arg.startswith("--config-file=")]
        here = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--listen-address=127.0.0.1"]
        here += ["--secure-serving=false", "--drain-timeout=0s", f"--config-file={config}"]
        options, _ = parse_serve([*(arg.replace("$(NAMESPACE)", NAMESPACE) for arg in arguments), *here])
        picker = Picker(options, environment={"KUBECONFIG": str(kubeconfig), "POD_NAME": "qwen-modelservice-epp-a-b"})
        await picker.start()
        try:
            expected = set()
            for obj, answers in cluster_pods(manifests):
                server.put(PODS.format(NAMESPACE), obj)
                if answers:
                    expected.add(obj["metadata"]["name"])
            server.put(POOLS.format(NAMESPACE), next(m for m in manifests if m["kind"] == "InferencePool"))
            assert expected
            for _ in range(1000):
                if {endpoint.pod for endpoint in picker.pool.table.all(0.0)} == expected and picker.health.ready:
                    break
                await asyncio.sleep(0.02)
            assert {endpoint.pod for endpoint in picker.pool.table.all(0.0)} == expected
            assert picker.health.ready
        finally:
            await picker.stop()
        refused = {request for request in server.requests if not allowed(request, manifests)}
        assert not refused
