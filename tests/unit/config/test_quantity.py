"""Quantities are read as Kubernetes reads them."""

from __future__ import annotations

import pytest

from epp.config.quantity import Quantity


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("10Gi", 10 * 2**30),
        ("1k", 1000),
        ("1Ki", 1024),
        ("500M", 500_000_000),
        ("1G", 10**9),
        ("1.5Gi", 1610612736),
        ("1e6", 10**6),
        ("1E3", 1000),
        ("2E", 2 * 10**18),
        ("100m", 1),
        ("1500m", 2),
        ("0", 0),
        (0, 0),
        (4096, 4096),
        (1.0, 1),
        ("-5", -5),
        ("+5", 5),
        (".5k", 500),
    ],
)
def test_reads_what_kubernetes_reads(value: object, number: int) -> None:
    assert Quantity.parse(value) == number


@pytest.mark.parametrize("value", ["", "Gi", "1 Gi", "1gi", "1GB", "x", "1.2.3", None, True, [1], "mi"])
def test_refuses_the_rest(value: object) -> None:
    with pytest.raises(ValueError, match="quantity"):
        Quantity.parse(value)


@pytest.mark.parametrize("value", ["1mi", "1ki"])
def test_names_an_unknown_suffix(value: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        Quantity.parse(value)


@pytest.mark.parametrize("value", ["9Ei", "1e999", "99999999999999999999"])
def test_refuses_what_does_not_fit(value: str) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        Quantity.parse(value)
