"""What a pool is called, and where it is looked for."""

from __future__ import annotations

import pytest

from epp.cli.flags import FlagError, ServeOptions
from epp.cli.kubernetes_mode import namespace_of, pool_name


@pytest.mark.parametrize(
    ("options", "pod", "name"),
    [
        (ServeOptions(pool_name="mine"), "ignored-7d9f-x2x4z", "mine"),
        (ServeOptions(), "epp-7d9f-x2x4z", "epp"),
        (ServeOptions(endpoint_selector="app=x"), "my-picker-7d9f-x2x4z", "my-picker"),
        (ServeOptions(endpoint_selector="app=x"), "alone", "alone"),
        (ServeOptions(endpoint_selector="app=x"), "", "epp"),
    ],
)
def test_names(options: ServeOptions, pod: str, name: str) -> None:
    assert pool_name(options, {"POD_NAME": pod}) == name


def test_replicas_need_one_name() -> None:
    options = ServeOptions(endpoint_selector="app=x", ha_enable_leader_election=True)
    with pytest.raises(FlagError, match="POD_NAME"):
        pool_name(options, {})


def test_namespaces() -> None:
    assert namespace_of(ServeOptions(pool_namespace="a"), {"NAMESPACE": "b"}) == "a"
    assert namespace_of(ServeOptions(), {"NAMESPACE": "b"}) == "b"
    assert namespace_of(ServeOptions(), {}) == "default"
