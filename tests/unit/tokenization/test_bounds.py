"""The cache and the breaker."""

from __future__ import annotations

from typing import Any

from epp_plugins.tokenization.bounded import BoundedCache
from epp_plugins.tokenization.breaker import FAILURES, LONGEST_PAUSE, Breaker


def test_the_oldest_goes_first_and_huge_ones_are_not_kept() -> None:
    cache: BoundedCache[str, int] = BoundedCache(80)
    for n in range(8):
        cache.put(str(n), n, 10)
    assert (len(cache), cache.used) == (8, 80)
    assert cache.get("0") == 0
    cache.put("8", 8, 10)
    assert cache.get("1") is None
    assert cache.get("0") == 0
    cache.put("0", 9, 5)
    assert cache.used == 75
    cache.put("huge", 1, 11)
    assert cache.get("huge") is None
    empty: BoundedCache[str, int] = BoundedCache(0)
    empty.put("a", 1, 1)
    assert len(empty) == 0


def test_the_breaker_opens_and_tries_again_ever_more_rarely(clock: Any) -> None:
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.allows()
        assert not breaker.open
        breaker.failed()
    assert breaker.open
    assert not breaker.allows()
    pauses = []
    for _ in range(8):
        before = clock.now
        while not breaker.allows():
            clock.now += 0.5
        pauses.append(clock.now - before)
        assert not breaker.allows()
        breaker.failed()
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    breaker.succeeded()
    assert breaker.allows()
    assert not breaker.open
