"""The law of how often endpoints are asked."""

import numpy as np
import pytest

from epp.datalayer.cadence import CollectorSettings, backed_off, is_active, is_hot, pace

SETTINGS = CollectorSettings()
NEVER = np.inf


def law(
    since_pick: list[float],
    since_fetch: list[float] | None = None,
    cost: float = 200e-6,
    sources: int = 1,
    settings: CollectorSettings = SETTINGS,
) -> list[float]:
    """The interval of each endpoint."""
    picked = np.array(since_pick)
    hot = is_hot(settings, picked, np.zeros(picked.size) if since_fetch is None else np.array(since_fetch))
    active, count = is_active(settings, picked), int(np.count_nonzero(hot))
    found = pace(settings, cost=cost, sources=sources, count=picked.size, hot=count, active=active)
    return [found.hot if each else found.rest for each in hot]


def test_idle_pools_are_asked_rarely() -> None:
    assert law([NEVER] * 3) == [1.5] * 3
    assert law([5.1, 100.0, NEVER]) == [1.5] * 3
    assert not is_active(SETTINGS, np.array([]))


def test_one_pick_makes_the_whole_pool_active() -> None:
    assert law([4.9, NEVER, NEVER]) == [0.15] * 3
    assert law([0.01, NEVER, NEVER]) == [0.05, 0.15, 0.15]


def test_a_pick_since_the_last_fetch_is_hot_until_it_was_fetched() -> None:
    assert law([0.4, 0.4], [0.5, 0.3]) == [0.05, 0.15]


def test_the_pick_of_a_dead_endpoint_does_not_stay_hot() -> None:
    assert law([60.0, 0.4], [NEVER, 0.1]) == [0.15, 0.15]


def test_the_budget_stretches_the_intervals() -> None:
    assert law([NEVER] * 1000, cost=1e-3) == [5.0] * 1000
    assert law([1.0] * 1000, cost=200e-6) == [1.0] * 1000
    assert law([1.0] * 500, cost=200e-6, sources=2) == [1.0] * 500


@pytest.mark.parametrize("hot", [0, 1, 7, 50, 100])
@pytest.mark.parametrize("cost", [50e-6, 200e-6, 400e-6, 2e-3])
def test_the_budget_is_kept(hot: int, cost: float) -> None:
    got = law([0.1] * hot + [1.0] * (100 - hot), [0.0] * 100, cost=cost)
    assert sum(cost / interval for interval in got) <= SETTINGS.cpu_budget * 1.0001
    assert all(interval >= SETTINGS.refresh_interval for interval in got)
    assert max(got[:hot], default=0.0) <= min(got[hot:], default=np.inf)


def test_hundred_endpoints_stay_fresh_within_the_budget() -> None:
    assert max(law([0.1] * 30 + [1.0] * 70, [0.0] * 100, cost=400e-6)) <= 0.25


def test_the_refresh_interval_is_the_fastest_of_all() -> None:
    slow = CollectorSettings(refresh_interval=10.0)
    assert law([0.0, NEVER], cost=1e-6, settings=slow) == [10.0, 10.0]


def test_what_the_first_pick_would_bring_is_known_before_it() -> None:
    assert pace(SETTINGS, cost=200e-6, sources=1, count=3, hot=0, active=True).hot == 0.05
    assert pace(SETTINGS, cost=200e-6, sources=1, count=3, hot=0, active=False).hot == 1.5
    tight = pace(SETTINGS, cost=200e-6, sources=1, count=2000, hot=0, active=True)
    assert tight.hot == tight.rest == 2.0


def test_failures_double_the_interval() -> None:
    wanted = np.array([0.05, 0.05, 0.05, 0.05, 9.0])
    got = backed_off(SETTINGS, wanted, np.array([0.0, 1.0, 3.0, 60.0, 2.0]))
    assert got.tolist() == pytest.approx([0.05, 0.2, 0.8, 5.0, 9.0])


@pytest.mark.parametrize("bad", [{"refresh_interval": 0}, {"cpu_budget": -1}, {"timeout": 0}, {"jitter": 1.0}])
def test_settings_that_make_no_sense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CollectorSettings(**bad)  # type: ignore[arg-type]
