"""Durations are read as Go reads them."""

from __future__ import annotations

import pytest

from epp.config.duration import Duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1m0.5s", 60.5),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("5ns", 5e-9),
        ("-2s", -2.0),
        ("+2s", 2.0),
        ("0", 0.0),
        ("0s", 0.0),
        (0, 0.0),
        (" 1s ", 1.0),
    ],
)
def test_reads_what_go_reads(text: object, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "60", "1", "s", "1x", "1s2", "--1s", "1 s", "1e3s", 60, 1.5, None, True, ["1s"]])
def test_refuses_what_go_refuses(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse(text)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="292 years"):
        Duration.parse("9999999999999h")


@pytest.mark.parametrize("text", ["0s", "250ms", "60s", "5400s", "1500ms", "-2s", "7us", "5ns"])
def test_prints_what_it_would_read(text: str) -> None:
    assert str(Duration.parse(text)) == text
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)
