"""The chart: what it renders to is on record, values that cannot work are refused, names of older charts work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.kubernetes.manifests import ROOT, render

CHART = ROOT / "deploy/charts/epp"
GOLDEN = ("default", "leader-election", "istio")
SERVERS = {"modelServers": {"matchLabels": {"app": "vllm"}}}
Chart = Callable[[dict[str, Any]], Any]


def files(name: str) -> dict[str, str]:
    values = yaml.safe_load((CHART / f"examples/{name}.values.yaml").read_text())
    return render(CHART, values, name="llm", namespace="models")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    """With EPP_GOLDEN=write the record is written again; the test still fails where it was different."""
    rendered = files(name)
    notes = rendered.pop("NOTES.txt")
    text = f"# Rendered from {name}.values.yaml, as release llm in namespace models.\n"
    text += "".join(f"---\n# {file}\n{content.strip()}\n" for file, content in rendered.items() if content.strip())
    text += "---\n# NOTES.txt\n" + "".join(f"# {line}".rstrip() + "\n" for line in notes.strip().splitlines())
    golden = CHART / f"examples/{name}.rendered.yaml"
    before = golden.read_text() if golden.exists() else ""
    if os.environ.get("EPP_GOLDEN") == "write":
        golden.write_text(text)
    assert text == before


def test_helm_finds_nothing_to_say() -> None:
    found = helm_python.lint(CHART, {"router": SERVERS}, strict=True)
    assert not found["errors"]
    assert not [message for message in found["messages"] if message["severity"] > 1]  # 2: warning, 3: error


def test_the_archive_holds_what_the_links_point_to(tmp_path: Path) -> None:
    with helm_python.Chart.load(CHART) as chart:
        archive = chart.save(tmp_path)
    with helm_python.Chart.load(archive) as chart:
        again = {
            Path(k).name: text for k, text in chart.render({"router": SERVERS}, name="llm", namespace="models").items()
        }
        assert [crd["name"] for crd in chart.crds]
    assert again["config.yaml"] == files("default")["config.yaml"]


def test_a_changed_configuration_replaces_the_pods(chart: Chart) -> None:
    def checksum(**epp: Any) -> str:
        release = chart({"router": {**SERVERS, "epp": epp}})
        text: str = release.picker["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        return text

    assert checksum() == checksum(replicas=1)
    assert (
        len({checksum(), checksum(pluginsConfigFile="tiered-cpu.yaml"), checksum(pluginsCustomConfig={"a": "b"})}) == 3
    )


@pytest.mark.parametrize("mode", ["sidecar", "service"])
def test_a_changed_envoy_replaces_its_pods(mode: str, chart: Chart) -> None:
    def checksum(**proxy: Any) -> str:
        release = chart({"router": {**SERVERS, "proxy": {"enabled": True, "mode": mode, **proxy}}})
        pods = release.picker if mode == "sidecar" else release.one("Deployment", "-envoy")
        text: str = pods["spec"]["template"]["metadata"]["annotations"]["checksum/envoy"]
        return text

    assert checksum() == checksum(failOpen=False)
    assert len({checksum(), checksum(failOpen=True), checksum(lightMode=True)}) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "router.modelServers.matchLabels is empty"),
        ({"router": {**SERVERS, "ep": {}}}, "ep"),
        ({"router": {**SERVERS, "epp": {"replica": 2}}}, "replica"),
        ({"router": {**SERVERS, "epp": {"replicas": 0}}}, "replicas"),
        (
            {"router": {**SERVERS, "epp": {"pluginsConfigFile": "nosuch.yaml"}}},
            "use one of conformance.yaml, default-pl",
        ),
        ({"router": {**SERVERS, "inferencePool": {"failureMode": "Open"}}}, "failureMode"),
        ({"router": {**SERVERS, "proxy": {"enabled": True, "proxyType": "agentgateway"}}}, "proxyType"),
        ({"router": {**SERVERS, "proxy": {"enabled": True, "presets": {"envoy": {}}}}}, "router.proxy.presets"),
        ({"router": {**SERVERS, "proxy": {"enabled": True}, "epp": {"replicas": 3}}}, "only the leader is ready"),
        ({"router": {**SERVERS, "latencyPredictor": {"enabled": True}}}, "latencyPredictor"),
        (
            {"router": {"modelServers": {"matchLabels": {"app": "x"}, "targetPorts": [{"number": 8000}] * 2}}},
            "targetPorts",
        ),
        ({"inferencePool": {"modelServers": {}}}, "matchLabels"),
        ({"router": {**SERVERS, "tokenizer": {"enabled": True, "modelName": "m"}}}, "tokenizer"),
        ({"router": SERVERS, "provider": {"gke": {"preferredBackends": {"enabled": True}}}}, "preferredBackends"),
        ({"router": SERVERS, "inferenceExtension": {"sidecar": {"enabled": True}}}, "sidecar"),
        ({"router": SERVERS, "inferenceExtension": {"metricsDataSource": {"path": "/other"}}}, "metricsDataSource"),
        ({"router": SERVERS, "provider": {"name": "nginx"}}, "provider"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], said: str, chart: Chart) -> None:
    with pytest.raises(helm_python.HelmError, match=said):
        chart(values)


def test_values_files_of_guides_may_name_what_is_off(chart: Chart) -> None:
    plain = chart({"router": SERVERS})
    named = chart(
        {
            "router": {
                **SERVERS,
                "tokenizer": {"enabled": False, "modelName": "m", "flavor": "vllm"},
                "latencyPredictor": {"enabled": False},
                "proxy": {"enabled": False, "proxyType": "agentgateway", "presets": {"agentgateway": {"args": []}}},
            },
            "provider": {"gke": {"autopilot": True, "preferredBackends": {"enabled": False, "preferredReplicas": 2}}},
            "inferenceExtension": {
                "sidecar": {"enabled": False, "image": "x"},
                "metricsDataSource": {"scheme": "http", "path": "/metrics", "insecureSkipVerify": True},
            },
            "inferencePool": {"modelServers": SERVERS["modelServers"], "parser": ""},
        }
    )
    assert named == plain


def test_defaults_fit_the_schema_and_every_value_is_in_it() -> None:
    with helm_python.Chart.load(CHART) as loaded:
        schema, values = loaded.schema, loaded.values
        loaded.validate_schema({})
    assert schema is not None

    def known(value: Any, part: dict[str, Any], where: str) -> None:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        if not isinstance(value, dict) or "properties" not in part:
            return
        assert part["additionalProperties"] is False, where
        for key, inner in value.items():
            known(inner, part["properties"][key], f"{where}.{key}")

    known(values, schema, "values")


def test_flags_win_and_are_written_as_the_picker_reads_them(chart: Chart) -> None:
    flags = {"v": 4, "drain-timeout": "20s", "max-request-body-bytes": 134217728, "health-checking": False}
    release = chart({"router": {**SERVERS, "epp": {"flags": flags}}})
    options = release.options
    assert (options.v, options.drain_timeout, options.max_request_body_bytes) == (4, 20.0, 134217728)
    assert options.health_checking is False
    assert len(release.arguments) == len({argument.partition("=")[0] for argument in release.arguments})


def test_several_replicas_lead_or_serve_together(chart: Chart) -> None:
    def released(**epp: Any) -> Any:
        return chart({"router": {**SERVERS, "epp": epp}})

    assert released(replicas=1).options.ha_enable_leader_election is False
    assert released(replicas=3).options.ha_enable_leader_election is True
    together = released(replicas=3, flags={"ha-enable-leader-election": False})
    assert together.options.ha_enable_leader_election is False
    assert together.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_names_of_the_older_chart_mean_the_same(named: Callable[[str], Any], chart: Chart) -> None:
    old = named("chart older-names")
    assert old.container["image"] == "epp:0.1.0"
    assert old.container["resources"]["requests"] == {"cpu": "4", "memory": "8Gi"}
    assert old.options.v == 1
    assert old.options.config_file == "/config/mine.yaml"
    assert old.options.metrics_endpoint_auth is True
    assert old.one("InferencePool")["spec"]["selector"]["matchLabels"] == {"app": "vllm-llama3-8b-instruct"}
    assert old.one("HTTPRoute")["spec"]["rules"][0]["matches"][0]["headers"][0]["value"].startswith("meta-llama/")
    new = chart({"router": {**SERVERS, "epp": {"replicas": 2}}})
    older = chart({"inferenceExtension": {"replicas": 2}, "inferencePool": SERVERS | {}})
    assert new == older


def test_the_engine_is_told_where_pods_do_not_say(named: Callable[[str], Any]) -> None:
    plugins = yaml.safe_load(named("chart gke").configuration)["plugins"]
    assert {"type": "core-metrics-extractor", "parameters": {"defaultEngine": "sglang"}} in plugins


def test_a_secret_is_the_certificate(named: Callable[[str], Any]) -> None:
    release = named("chart certificate")
    mounts = {mount["mountPath"]: mount["name"] for mount in release.container["volumeMounts"]}
    assert mounts[release.options.cert_path] == "certificate"
    assert release.options.enable_cert_reload
    assert release.container["image"] == "registry.example.com/llm/epp:1.2.3"


def test_metrics_are_read_with_a_token_of_a_reader(named: Callable[[str], Any]) -> None:
    release = named("chart istio")
    secret = release.one("Secret")
    reader = secret["metadata"]["annotations"]["kubernetes.io/service-account.name"]
    role = release.one("ClusterRole", "metrics-reader")
    assert role["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    assert [s["name"] for s in release.one("ClusterRoleBinding", "metrics-reader")["subjects"]] == [reader]
    credentials = release.one("ServiceMonitor")["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert credentials == {"name": secret["metadata"]["name"], "key": "token"}
    assert release.options.metrics_endpoint_auth


@pytest.mark.parametrize("name", sorted(path.name.split(".")[0] for path in CHART.glob("examples/*.values.yaml")))
def test_notes_say_where_to_look(name: str) -> None:
    notes = files(name)["NOTES.txt"]
    assert "kubectl -n models get pods" in notes
    assert "<no value>" not in notes
    assert "%!" not in notes
