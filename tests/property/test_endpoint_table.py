"""The endpoint table against a dictionary, under any sequence of changes."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from epp.api import BASE_COLUMNS, Endpoint, EndpointTable

PLACES = st.integers(0, 12)
LABELS = st.dictionaries(st.sampled_from(["role", "zone"]), st.sampled_from(["a", "b"]), max_size=2)


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = EndpointTable(capacity=2)
        self.model: dict[str, tuple[Endpoint, float]] = {}  # host_port -> endpoint, the value we wrote
        self.stale: list[tuple[int, int]] = []  # (row, generation) of endpoints that are gone
        self.extra: dict[str, float] = {}
        self.heard: dict[str, str] = {}
        self.table.on_added(lambda _, e: self.heard.__setitem__(e.host_port, e.key))
        self.table.on_removed(lambda _, e: self.heard.pop(e.host_port))

    @rule(place=PLACES, name=st.sampled_from(["x", "y"]), labels=LABELS, value=st.floats(0, 100))
    def add(self, place: int, name: str, labels: dict[str, str], value: float) -> None:
        endpoint = Endpoint(f"{name}-{place}", "10.0.0.1", 8000 + place, labels=labels)
        old_row = self.table.row_of(endpoint.host_port)
        old_generation = None if old_row is None else int(self.table.generation[old_row])
        row = self.table.add(endpoint)
        known = self.model.get(endpoint.host_port)
        if known is not None and known[0].key == endpoint.key:
            assert row == old_row
            assert self.table.is_current(row, old_generation)  # type: ignore[arg-type]
            assert self.table.columns["waiting"][row] == known[1]
        else:
            if old_row is not None and old_generation is not None:
                self.stale.append((old_row, old_generation))
            for column, default in BASE_COLUMNS.items():
                assert np.array_equal(self.table.columns[column][row], default, equal_nan=True)
            assert self.table.attributes[row] == {}
        for column, default in self.extra.items():
            if known is None or known[0].key != endpoint.key:
                assert self.table.columns[column][row] == default
        self.table.columns["waiting"][row] = value
        self.table.attributes[row]["seen"] = endpoint.key
        self.model[endpoint.host_port] = (endpoint, value)

    @rule(place=PLACES)
    def remove(self, place: int) -> None:
        host_port = f"10.0.0.1:{8000 + place}"
        row = self.table.row_of(host_port)
        if row is not None:
            self.stale.append((row, int(self.table.generation[row])))
        self.table.remove(host_port)
        self.model.pop(host_port, None)

    @rule(name=st.sampled_from(["gpu", "power"]), default=st.floats(-5, 5))
    def add_column(self, name: str, default: float) -> None:
        self.table.add_column(name, default)
        self.extra.setdefault(name, default)

    @invariant()
    def holds_exactly_the_model(self) -> None:
        table = self.table
        rows = table.rows.tolist()
        assert len(table) == len(self.model) == len(rows) == len(set(rows))
        assert rows == sorted(rows)
        assert self.heard == {host_port: endpoint.key for host_port, (endpoint, _) in self.model.items()}
        for host_port, (endpoint, value) in self.model.items():
            row = table.row_of(host_port)
            assert row in rows
            assert table.endpoints[row] == endpoint  # type: ignore[index]
            assert table.columns["waiting"][row] == value  # type: ignore[index]
            assert table.attributes[row]["seen"] == endpoint.key  # type: ignore[index]
        size = len(table.endpoints)
        assert all(column.size == size for column in table.columns.values())
        assert len(table.attributes) == table.generation.size == size

    @invariant()
    def gone_endpoints_stay_gone(self) -> None:
        assert not any(self.table.is_current(row, generation) for row, generation in self.stale)

    @invariant()
    def label_masks_are_right(self) -> None:
        view = self.table.all(0.0)
        for values in (["a"], ["a", "b"]):
            expected = [endpoint.labels.get("role") in values for endpoint in view]
            assert view.has_label("role", values).tolist() == expected


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEndpointTable = TableMachine.TestCase
