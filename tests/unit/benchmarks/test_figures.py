"""Figures are combined and judged as the scenarios say."""

import math

import pytest

from benchmarks.figures import bound, columns, middle, paired_ratio


def test_a_figure_at_its_bound_passes_and_above_fails() -> None:
    assert bound("x", 3.0, "ms", 3.0).passed
    assert not bound("x", 3.01, "ms", 3.0).passed


def test_no_figure_passes_no_bound() -> None:
    assert not bound("x", math.nan, "ms", 3.0).passed


def test_the_middle_is_the_median() -> None:
    assert middle([{"cpu": 1}, {"cpu": 100}, {"cpu": 3}], "cpu") == 3


def test_a_slow_round_does_not_change_the_ratio() -> None:
    ours = [{"cpu": 10.0}, {"cpu": 100.0}, {"cpu": 10.0}]
    theirs = [{"cpu": 100.0}, {"cpu": 1000.0}, {"cpu": 100.0}]
    assert paired_ratio(ours, theirs, "cpu") == pytest.approx(0.1)


def test_a_ratio_to_nothing_is_no_number() -> None:
    assert math.isnan(paired_ratio([{"cpu": 1.0}], [{"cpu": 0.0}], "cpu"))


@pytest.mark.parametrize(("ours", "theirs"), [(1, 2), (0, 0)])
def test_runs_without_a_partner_are_refused(ours: int, theirs: int) -> None:
    with pytest.raises(ValueError, match="make no pairs"):
        paired_ratio([{"cpu": 1.0}] * ours, [{"cpu": 1.0}] * theirs, "cpu")


def test_columns_show_whole_numbers_unless_told() -> None:
    assert [column.digits for column in columns(("a", "A"), ("b", "B", 2))] == [0, 2]
