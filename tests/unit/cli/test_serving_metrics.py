"""What exchanges and the transport tell of themselves."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from epp.cli.serving_metrics import ExchangeMetrics, expose_transport
from epp.extproc.codec import InvalidMessage, decode
from epp.telemetry.exposition import render_now
from epp.telemetry.metrics import Registry
from epp.transport import limits
from epp.transport.limits import TransportStats


def test_failures_and_violations_are_counted_and_logged_once_a_while(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    metrics = ExchangeMetrics(registry, lambda: 100.0)
    with caplog.at_level(logging.WARNING, "epp.extproc"):
        for _ in range(3):
            metrics.failed(ZeroDivisionError("oops"))
            metrics.violated("request_body before request_headers")
    page = render_now(registry).decode()
    assert 'llm_d_epp_extproc_internal_errors_total{kind="ZeroDivisionError"} 3.0' in page
    assert 'extproc_protocol_violations_total{problem="request_body before request_headers"} 3.0' in page
    assert [record.getMessage() for record in caplog.records] == [
        "an exchange failed: ZeroDivisionError: oops",
        "the gateway broke the protocol: request_body before request_headers",
    ]


def test_messages_that_nobody_can_read_are_one_series_whatever_their_length(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    metrics = ExchangeMetrics(registry, lambda: 100.0)
    for size in range(2, 50):
        with pytest.raises(InvalidMessage) as invalid:
            decode(b"\xff" * size)
        metrics.violated(str(invalid.value))
    page = render_now(registry).decode()
    assert 'extproc_protocol_violations_total{problem="not a ProcessingRequest of ext_proc"} 48.0' in page
    assert len(caplog.records) == 1
    assert "(2 bytes)" in caplog.text


def test_the_transport_is_read_when_the_page_is() -> None:
    registry, stats = Registry(), TransportStats()
    expose_transport(registry, stats)
    stats.streams = 4
    stats.hit("buffered_server")
    stats.tls_failures = 2
    page = render_now(registry).decode()
    assert "llm_d_epp_transport_streams 4.0" in page
    assert "# TYPE llm_d_epp_transport_streams gauge" in page
    assert "llm_d_epp_transport_tls_failures_total 2.0" in page
    assert all(
        line.endswith(" counter") for line in page.splitlines() if line.startswith("# TYPE") and "_total " in line
    )
    assert page.count("_total counter") == 6
    assert 'llm_d_epp_transport_limits_hit_total{limit="buffered_server"} 1.0' in page
    assert 'llm_d_epp_transport_limits_hit_total{limit="message"} 0.0' in page


def test_every_limit_that_is_counted_is_on_the_page_before_it_is_reached() -> None:
    named: set[str] = set()
    for source in Path(limits.__file__).parent.glob("*.py"):
        for line in source.read_text().splitlines():
            if "stats.hit(" in line or "self._give_up, " in line:
                named.update(re.findall(r'"(\w+)"', line))
    assert named == set(limits.COUNTED)
