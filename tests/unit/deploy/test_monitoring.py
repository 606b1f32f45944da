"""Dashboard, alerts, autoscaling: valid for Prometheus, and about metrics that the picker has."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import ProcessCollector

from epp.cli.flags import parse_serve
from epp.cli.serving import Picker
from epp.transport.certificates import self_signed
from tests.kubernetes.api_server import ApiServer, pool
from tests.promtool import promtool

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "monitoring/alerts.yaml").read_text())["spec"]
DASHBOARD = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
FROM_PROMETHEUS = {"job", "instance", "namespace"}
METRIC = re.compile(r"\b((?:llm_d_epp|process)_\w+)(\{[^}]*\})?")
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/ns/inferencepools"
FILE = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: file-discovery, parameters: {path: ENDPOINTS}}]
dataLayer: {discovery: {pluginRef: file-discovery}}
"""


@dataclass(frozen=True)
class Exposed:
    """A series that can be asked for."""

    labels: frozenset[str]


def queries() -> Iterator[tuple[str, str]]:
    """Where it stands, and the query with a value for every variable."""
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"]
    keda = yaml.safe_load((DEPLOY / "autoscaling/keda.yaml").read_text())
    for trigger in keda["spec"]["triggers"]:
        yield "keda", trigger["metadata"]["query"]
    text = (DEPLOY / "autoscaling/hpa.yaml").read_text()
    adapter = yaml.safe_load("\n".join(re.findall(r"^#   (.*)$", text, re.M)))
    yield "hpa", adapter[0]["metricsQuery"].replace("<<.LabelMatchers>>", 'name="llm"')


QUERIES = [
    (where, re.sub(r"\$(job|pool|model)\b", ".*", text.replace("$__rate_interval", "5m"))) for where, text in queries()
]


async def collect(folder: Path) -> dict[str, Exposed]:
    """Everything that pickers with the configurations that ship may show, from their registries."""
    pair = self_signed(datetime.now(UTC))
    for name, part in zip(("tls.crt", "tls.key"), pair, strict=True):
        (folder / name).write_bytes(part)
    (folder / "endpoints.yaml").write_text("endpoints: []")
    (folder / "file.yaml").write_text(FILE.replace("ENDPOINTS", str(folder / "endpoints.yaml")))
    found: dict[str, Exposed] = {"process_cpu_seconds_total": Exposed(frozenset())}
    for metric in ProcessCollector(registry=None).collect():
        found |= {sample.name: Exposed(frozenset(sample.labels)) for sample in metric.samples}
    async with ApiServer().serving() as api:
        api.put(POOLS, pool("pool", 8000))
        (folder / "kubeconfig").write_text(api.kubeconfig("picker"))
        files = [*DEPLOY.glob("kustomize/overlays/*/epp.yaml"), folder / "file.yaml"]
        for number, file in enumerate(files):
            flags = ["--pool-name=pool", "--pool-namespace=ns", "--allow-experimental-plugins", "--tracing=false"]
            flags += ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--listen-address=127.0.0.1"]
            flags += [f"--config-file={file}", "--ha-enable-leader-election", "--enable-grpc-stream-metrics"]
            flags += [f"--cert-path={folder}", "--enable-cert-reload", "--drain-timeout=0s"]
            picker = Picker(parse_serve(flags)[0], environment={"KUBECONFIG": str(folder / "kubeconfig")})
            if number == 0 or file.name == "file.yaml":
                await picker.start()
                assert picker.kubernetes is not None
                assert picker.kubernetes.leadership is not None
                for _ in range(600):
                    if picker.kubernetes.leadership.election.holder:
                        break
                    await asyncio.sleep(0.05)
            picker.registry.limited("requests")
            for source in picker.registry.sources():
                labels = frozenset(source.label_names)
                names = [source.name]
                if source.kind == "histogram":
                    names = [source.name + "_sum", source.name + "_count"]
                    found[source.name + "_bucket"] = Exposed(labels | {"le"})
                found |= {name: Exposed(labels) for name in names}
            await picker.stop()
    return found


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exposed]:
    return asyncio.run(collect(tmp_path_factory.mktemp("metrics")))


def unknown(query: str, exposed: dict[str, Exposed]) -> list[str]:
    """Metrics and labels of a query that no picker shows."""
    bare = re.sub(r'"[^"]*"', '""', query)
    wrong: list[str] = []
    labels: set[str] = set(FROM_PROMETHEUS)
    for name, selector in METRIC.findall(bare):
        if name not in exposed:
            wrong.append(name)
            continue
        own = exposed[name].labels | FROM_PROMETHEUS
        labels |= own
        wrong += [f"{name}{{{label}}}" for label in re.findall(r"(\w+)\s*(?:=|!)", selector) if label not in own]
    for group in re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", bare):
        wrong += [label for label in re.split(r"[,\s]+", group) if label and label not in labels]
    return wrong


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[f"{i} {where}" for i, (where, _) in enumerate(QUERIES)])
def test_queries_ask_for_what_there_is(where: str, query: str, exposed: dict[str, Exposed]) -> None:
    assert METRIC.search(query)
    assert unknown(query, exposed) == []


def test_what_there_is_not_is_found(exposed: dict[str, Exposed]) -> None:
    assert unknown("rate(llm_d_epp_request_totals[5m])", exposed) == ["llm_d_epp_request_totals"]
    assert unknown('llm_d_epp_leader{pool="x"}', exposed) == ["llm_d_epp_leader{pool}"]
    assert unknown("sum by (color) (llm_d_epp_leader)", exposed) == ["color"]


def test_labels_in_texts_are_those_of_the_query() -> None:
    for rule in RULES:
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            assert re.search(rf"\b(by|on) \([^)]*\b{label}\b", rule["expr"]), f"{rule['alert']}: {label}"


def test_every_row_of_the_dashboard_is_a_question_with_answers() -> None:
    rows = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert all(row["title"].endswith("?") for row in rows)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        end = after["gridPos"]["y"] if after else 10_000
        assert [p for p in PANELS if row["gridPos"]["y"] < p["gridPos"]["y"] < end], row["title"]
    taken = [
        (x, panel["gridPos"]["y"])
        for panel in PANELS
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
    ]
    assert len(taken) == len(set(taken))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    for panel in PANELS:
        text = "".join(target["expr"] for target in panel["targets"])
        assert set(re.findall(r"\$(\w+)", text)) <= variables


@pytest.fixture
def tool(tmp_path: Path) -> Any:
    binary = promtool()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(binary), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": ALERTS["groups"]}))
    return run


def test_prometheus_takes_the_alerts(tool: Any) -> None:
    done = tool("check", "rules", "alerts.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_prometheus_understands_every_query(tool: Any, tmp_path: Path) -> None:
    rules = [{"record": f"query_{n}", "expr": query} for n, (_, query) in enumerate(QUERIES)]
    (tmp_path / "queries.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = tool("check", "rules", "queries.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_not_otherwise(tool: Any, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/data/deploy/alerts_test.yaml", tmp_path)
    done = tool("test", "rules", "alerts_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_been_seen_to_fire() -> None:
    tests = yaml.safe_load((ROOT / "tests/data/deploy/alerts_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("name", ["keda", "hpa", "picker-hpa"])
def test_autoscalers_are_valid(name: str, check: Any) -> None:
    check(yaml.safe_load((DEPLOY / f"autoscaling/{name}.yaml").read_text()))
