"""The endpoint table and its views."""

import numpy as np
import pytest

from epp.api import DataKey, Endpoint, Endpoints, EndpointTable


def endpoint(index: int, **fields: object) -> Endpoint:
    values: dict[str, object] = {
        "name": f"pod-{index}",
        "address": f"10.0.{index // 250}.{index % 250 + 1}",
        "port": 8000,
    }
    values.update(fields)
    return Endpoint(**values)  # type: ignore[arg-type]


def test_host_port_brackets_ipv6() -> None:
    assert Endpoint("a", "10.0.0.1", 8000).host_port == "10.0.0.1:8000"
    assert Endpoint("a", "fd00::1", 8000).host_port == "[fd00::1]:8000"
    assert Endpoint("a", "10.0.0.1", 8000, namespace="prod").key == "prod/a"


def test_new_rows_hold_defaults() -> None:
    table = EndpointTable()
    row = table.add(endpoint(0))
    assert np.isnan(table.columns["waiting"][row])
    assert table.columns["scraped_at"][row] == -np.inf
    assert table.columns["inflight_requests"][row] == 0.0
    assert table.attributes[row] == {}
    assert table.row_of("10.0.0.1:8000") == row


def test_adding_again_keeps_row_and_measurements() -> None:
    table = EndpointTable()
    row = table.add(endpoint(0))
    table.columns["waiting"][row] = 3.0
    version = table.version
    assert table.add(endpoint(0)) == row
    assert table.version == version
    assert table.add(endpoint(0, labels={"role": "decode"})) == row
    assert table.columns["waiting"][row] == 3.0
    assert table.version > version
    stored = table.endpoints[row]
    assert stored is not None
    assert stored.labels == {"role": "decode"}


def test_another_pod_at_the_same_address_starts_afresh() -> None:
    table = EndpointTable()
    row = table.add(endpoint(0))
    generation = int(table.generation[row])
    table.columns["waiting"][row] = 3.0
    table.attributes[row]["lora"] = "old"
    events: list[tuple[str, str]] = []
    table.on_added(lambda _, e: events.append(("added", e.name)))
    table.on_removed(lambda _, e: events.append(("removed", e.name)))
    new = table.add(endpoint(0, name="other"))
    assert events == [("removed", "pod-0"), ("added", "other")]
    assert not table.is_current(row, generation)
    assert np.isnan(table.columns["waiting"][new])
    assert table.attributes[new] == {}
    assert len(table) == 1


def test_a_removed_row_is_not_current_and_is_reused() -> None:
    table = EndpointTable(capacity=1)
    row = table.add(endpoint(0))
    generation = int(table.generation[row])
    table.remove("10.0.0.1:8000")
    assert not table.is_current(row, generation)
    assert table.row_of("10.0.0.1:8000") is None
    assert len(table.rows) == 0
    table.remove("10.0.0.1:8000")  # unknown by now: nothing happens
    assert table.add(endpoint(1)) == row
    assert not table.is_current(row, generation)


def test_growth_keeps_values_and_added_columns() -> None:
    table = EndpointTable(capacity=2)
    table.add_column("gpu", default=-1.0)
    rows = [table.add(endpoint(index)) for index in range(9)]
    assert len(set(rows)) == 9
    for index, row in enumerate(rows):
        assert table.columns["gpu"][row] == -1.0
        table.columns["gpu"][row] = index
    table.add(endpoint(100))
    assert [table.columns["gpu"][row] for row in rows] == list(range(9))
    assert table.add_column("gpu", default=5.0) is table.columns["gpu"]
    assert {column.size for column in table.columns.values()} == {len(table.endpoints)} == {table.generation.size}


def test_label_masks_follow_changes() -> None:
    table = EndpointTable()
    table.add(endpoint(0, labels={"role": "decode"}))
    table.add(endpoint(1, labels={"role": "prefill"}))
    table.add(endpoint(2))
    view = table.all(0.0)
    by_name = dict(zip([e.name for e in view], view.has_label("role", ["decode", "both"]).tolist(), strict=True))
    assert by_name == {"pod-0": True, "pod-1": False, "pod-2": False}
    table.add(endpoint(1, labels={"role": "both"}))
    assert table.all(0.0).has_label("role", ["decode", "both"]).sum() == 2
    table.remove("10.0.0.1:8000")
    assert table.all(0.0).has_label("role", ["decode", "both"]).sum() == 1


def test_views_are_copies_in_row_order() -> None:
    table = EndpointTable()
    for index in range(3):
        row = table.add(endpoint(index, labels={"i": str(index)}))
        table.columns["waiting"][row] = index
        table.columns["scraped_at"][row] = 10.0
    view = table.all(now=10.5)
    assert view.rows.tolist() == sorted(view.rows.tolist())
    assert view.age.tolist() == [0.5] * 3
    waiting = view.waiting
    waiting[:] = 99.0
    assert table.columns["waiting"][view.rows].max() == 2.0
    assert [e.labels["i"] for e in view] == view.label("i")
    assert view[0].host_port == view.addresses()[0]
    for name in ("running", "kv_usage", "block_size", "num_blocks", "rtt"):
        assert np.isnan(getattr(view, name)).all()
    assert view.inflight_requests.tolist() == view.inflight_tokens.tolist() == [0.0] * 3


def test_attributes_of_a_view() -> None:
    table = EndpointTable()
    first, second = table.add(endpoint(0)), table.add(endpoint(1))
    table.attributes[first]["models"] = ("tiny",)
    view = Endpoints(table, np.array([second, first]), 0.0)
    assert view.attribute("models") == [None, ("tiny",)]


def test_take_cuts_produced_columns() -> None:
    table = EndpointTable()
    for index in range(4):
        table.add(endpoint(index))
    view = table.all(0.0)
    key = DataKey("Match", "producer")
    view.set(key, np.arange(4.0))
    assert view.has(key)
    assert view.take(np.array([True, False, True, False])).column(key).tolist() == [0.0, 2.0]
    assert view.take([3, 1]).column(key).tolist() == [3.0, 1.0]
    assert view.take([3, 1]).rows.tolist() == [view.rows[3], view.rows[1]]
    with pytest.raises(ValueError, match="shape"):
        view.set(key, np.arange(3.0))


def test_unknown_columns_and_gone_endpoints_are_told() -> None:
    table = EndpointTable()
    row = table.add(endpoint(0))
    view = table.all(0.0)
    assert not view.has("nothing")
    with pytest.raises(LookupError, match="consumes"):
        view.column("nothing")
    with pytest.raises(LookupError, match="no column"):
        view.column(DataKey("Nothing", "nobody"))
    table.remove("10.0.0.1:8000")
    assert list(view) == []
    with pytest.raises(LookupError, match="removed"):
        view[0]
    assert view.rows.tolist() == [row]


def test_an_empty_table() -> None:
    view = EndpointTable().all(0.0)
    assert len(view) == 0
    assert view.waiting.shape == (0,)
    assert view.has_label("a", ["b"]).shape == (0,)


def test_nobody_can_change_the_rows_that_every_request_reads() -> None:
    table = EndpointTable()
    table.add(endpoint(1))
    with pytest.raises(ValueError, match="read-only"):
        table.all(0.0).rows[:] = 99
    assert [found.name for found in table.all(0.0)] == [endpoint(1).name]
