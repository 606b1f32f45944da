"""Whatever the order of picks, first chunks, ends and changes of the pool: the counts are exact and end at zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from epp.api import (
    Endpoint,
    EndpointTable,
    InferenceRequest,
    InferenceResponse,
    Payload,
    ProfileResult,
    Prompt,
    SchedulingResult,
)
from epp.telemetry.metrics import Registry
from epp.testing import plugin
from epp_plugins.producers.inflight_load import InflightLoadProducer
from epp_plugins.producers.inflight_series import LABELS

NAMES = 4


class Accounting(RuleBasedStateMachine):
    @initialize(output=st.booleans())
    def begin(self, output: bool) -> None:
        self.table = EndpointTable(capacity=2)
        self.registry = Registry()
        self.producer = plugin(
            InflightLoadProducer,
            {"addEstimatedOutputTokens": output},
            table=self.table,
            metrics=self.registry,
        )
        self.open: list[InferenceRequest] = []
        # What should be counted: request id, endpoint, row, generation -> requests, tokens.
        self.expected: dict[tuple[str, int, int, str], list[int]] = {}
        self.output = output
        self.serial = 0

    @rule(name=st.integers(0, NAMES - 1), pod=st.integers(0, 1))
    def add(self, name: int, pod: int) -> None:
        self.table.add(Endpoint(f"pod-{name}-{pod}", "10.0.0.1", 8000 + name))

    @rule(name=st.integers(0, NAMES - 1))
    def remove(self, name: int) -> None:
        self.table.remove(f"10.0.0.1:{8000 + name}")

    @rule(data=st.data(), tokens=st.integers(0, 50), prefill=st.booleans(), produce=st.booleans())
    def pick(self, data: Any, tokens: int, prefill: bool, produce: bool) -> None:
        endpoints = self.table.all(0.0)
        if not len(endpoints):
            return
        self.serial += 1
        request = InferenceRequest(str(self.serial), {}, "/", b"", Payload(max_tokens=30), 0.0)
        request.fairness_id = f"flow-{self.serial % 3}"
        request.prompt = Prompt((bytes(4 * tokens),), estimated=True)
        if produce:
            assert self.producer.produce(request, endpoints) is None
        profiles: dict[str, ProfileResult | None] = {"absent": None}
        names = ["decode", "prefill"] if prefill else ["decode"]
        for name in names:
            row = data.draw(st.sampled_from(endpoints.rows.tolist()))
            endpoint = self.table.endpoints[row]
            assert endpoint is not None
            profiles[name] = ProfileResult(name, (endpoint,), (row,), endpoints, np.zeros(len(endpoints)))
            output = min(int(tokens * 1.5), 30) if self.output and name == "decode" else 0
            key = (request.id, row, int(self.table.generation[row]), name)
            self.expected[key] = [1, tokens, output]
        self.producer.on_picked(request, SchedulingResult("decode", profiles))
        self.open.append(request)

    @rule(position=st.integers(0, 100))
    def first_chunk(self, position: int) -> None:
        if not self.open:
            return
        request = self.open[position % len(self.open)]
        self.producer.on_first_chunk(request, InferenceResponse())
        for key in [key for key in self.expected if key[0] == request.id]:
            if key[3] == "prefill":
                del self.expected[key]
            else:
                self.expected[key][1] = 0

    @rule(position=st.integers(0, 100), twice=st.booleans())
    def end(self, position: int, twice: bool) -> None:
        if not self.open:
            return
        request = self.open.pop(position % len(self.open))
        for _ in range(1 + twice):
            self.producer.on_response_end(request, InferenceResponse())
        for key in [key for key in self.expected if key[0] == request.id]:
            del self.expected[key]

    @invariant()
    def counts_are_exact(self) -> None:
        requests = np.zeros(len(self.table.endpoints))
        tokens = np.zeros(len(self.table.endpoints))
        for (_, row, generation, _), held in self.expected.items():
            if self.table.is_current(row, generation):
                requests[row] += held[0]
                tokens[row] += held[1] + held[2]
        rows = self.table.rows
        assert self.table.columns["inflight_requests"][rows].tolist() == requests[rows].tolist()
        assert self.table.columns["inflight_tokens"][rows].tolist() == tokens[rows].tolist()
        for name, column in (("inflight_requests", requests), ("inflight_tokens", tokens)):
            family = self.registry.gauge(name, "", LABELS)  # asked for again: the same family
            by_endpoint: dict[str, float] = {}
            for labels, child in family.children():
                assert child.value >= 0
                by_endpoint[labels[0]] = by_endpoint.get(labels[0], 0.0) + child.value
            for row in rows.tolist():
                endpoint = self.table.endpoints[row]
                assert endpoint is not None
                assert by_endpoint.pop(endpoint.name, 0.0) == column[row]
            assert not by_endpoint  # gone endpoints have no series

    def teardown(self) -> None:
        if not hasattr(self, "open"):
            return
        for request in self.open:
            self.producer.on_response_end(request, InferenceResponse())
        for column in ("inflight_requests", "inflight_tokens"):
            assert not self.table.columns[column][self.table.rows].any()


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
