"""A test client names the servers it wants."""

from __future__ import annotations

import pytest

import epp
from epp.testing import plugin, request
from epp_plugins.filters.header_based_testing import HEADER, HeaderBasedTestingFilter


@pytest.fixture
def candidates() -> epp.Endpoints:
    table = epp.EndpointTable()
    for index, (address, port) in enumerate(
        [("10.0.0.1", 8000), ("10.0.0.1", 8001), ("10.0.0.2", 8000), ("fd00::1", 8000), ("fd00::1", 8001)]
    ):
        table.add(epp.Endpoint(name=f"pod-{index}", address=address, port=port))
    return table.all(0.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.2", [2]),
        ("10.0.0.1", [0, 1]),
        ("10.0.0.1:8001", [1]),
        ("10.0.0.1:8001, 10.0.0.2:8000", [1, 2]),
        (" 10.0.0.2 ,, 10.9.9.9:1 , 10.0.0.1:9", [2]),
        ("fd00::1", [3, 4]),
        ("[fd00::1]", [3, 4]),
        ("[fd00::1]:8001", [4]),
        ("10.0.0.1:8000,10.0.0.1:8000", [0]),
        ("10.0.0.", []),
        ("192.168.0.1", []),
        ("", [0, 1, 2, 3, 4]),
        (" , ", [0, 1, 2, 3, 4]),
    ],
)
def test_keeps_who_is_named(candidates: epp.Endpoints, value: str, expected: list[int]) -> None:
    mask = plugin(HeaderBasedTestingFilter).filter(request(headers={HEADER: value}), candidates)
    assert mask.dtype == bool
    assert mask.nonzero()[0].tolist() == expected


def test_without_the_header_everybody_stays(candidates: epp.Endpoints) -> None:
    assert plugin(HeaderBasedTestingFilter).filter(request(), candidates).all()
