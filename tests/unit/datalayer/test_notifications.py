"""Who hears of endpoints, and of what."""

from __future__ import annotations

import logging

import pytest

import epp
from epp.datalayer.notifications import notify_endpoints
from epp.telemetry.exposition import render
from epp.telemetry.metrics import Registry
from epp.testing import ManualClock, assemble, plugin


class Diary(epp.EndpointExtractor[epp.NoParams]):
    """Writes down what it hears."""

    type = "diary"

    def __init__(self, params: epp.NoParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self.heard: list[str] = []

    def endpoint_changed(self, row: int, endpoint: epp.Endpoint) -> None:
        assert self.context.table.endpoints[row] is endpoint
        self.heard.append(f"+{endpoint.name}{sorted(endpoint.labels)}")

    def endpoint_removed(self, row: int, endpoint: epp.Endpoint) -> None:
        assert self.context.table.endpoints[row] is None
        self.heard.append(f"-{endpoint.name}")


class Broken(epp.EndpointExtractor[epp.NoParams]):
    """Fails whatever it hears."""

    type = "broken"
    error: type[BaseException] = RuntimeError

    def endpoint_changed(self, row: int, endpoint: epp.Endpoint) -> None:
        raise self.error("cannot")


def server(name: str, address: str, **labels: str) -> epp.Endpoint:
    return epp.Endpoint(name=name, address=address, port=8000, labels=labels)


def test_each_change_is_told_once() -> None:
    table = epp.EndpointTable()
    table.add(server("early", "10.0.0.9"))
    diary = plugin(Diary, table=table)
    notify_endpoints(table, [diary], clock=lambda: 0.0)
    table.add(server("a", "10.0.0.1"))
    table.add(server("a", "10.0.0.1"))
    table.add(server("a", "10.0.0.1", x="1"))
    table.add(server("b", "10.0.0.1"))  # another pod with the address
    table.remove("10.0.0.1:8000")
    table.remove("10.0.0.1:8000")
    assert diary.heard == ["+early[]", "+a[]", "+a['x']", "-a", "+b[]", "-b"]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
async def test_one_that_fails_keeps_nobody_from_hearing(
    error: type[BaseException], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "error", error)
    table, metrics, clock = epp.EndpointTable(), Registry(), ManualClock()
    diary, broken = plugin(Diary, table=table), plugin(Broken, table=table)
    notify_endpoints(table, [broken, diary], clock=clock, metrics=metrics)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            table.add(server(f"s{number}", f"10.0.0.{number + 1}"))
    assert len(diary.heard) == 3
    assert [record.getMessage() for record in caplog.records] == ["endpoint-notification-source: broken failed: cannot"]
    clock.advance(61)
    table.add(server("s9", "10.0.0.9"))
    assert len(caplog.records) == 2
    page, _ = await render(metrics)
    counted = [line for line in page.decode().splitlines() if "extract_errors_total{" in line]
    assert len(counted) == 1
    assert 'extractor_type="broken"' in counted[0]
    assert counted[0].endswith(" 4.0")


CONFIG = """
plugins:
- {{type: endpoint-notification-source}}
- {{type: metrics-data-source}}
- {{type: core-metrics-extractor}}
- {{type: k8s-notification-source, parameters: {{version: v1, kind: ConfigMap}}}}
- {{type: diary}}
dataLayer:
  sources:
  - {{pluginRef: {source}, extractors: [{{pluginRef: {extractor}}}]}}
"""


@pytest.mark.parametrize(
    ("source", "extractor", "role"),
    [
        ("endpoint-notification-source", "core-metrics-extractor", "endpoint extractor"),
        ("metrics-data-source", "diary", "extractor"),
        ("k8s-notification-source", "diary", "object extractor"),
        ("diary", "diary", "data source"),
    ],
)
def test_sources_and_extractors_must_fit(source: str, extractor: str, role: str) -> None:
    with pytest.raises(epp.ConfigError, match=f"not a {role}|not an? {role}"):
        assemble(CONFIG.format(source=source, extractor=extractor), types=[Diary])


def test_a_kind_has_a_version() -> None:
    with pytest.raises(epp.ConfigError, match="version"):
        assemble("plugins: [{type: k8s-notification-source, parameters: {kind: ConfigMap}}]\n")
