"""When a server is left alone, and for how long."""

from __future__ import annotations

import random

from epp.prefixcache.shared.breaker import FIRST, LONGEST, THRESHOLD, Breaker, pause


def test_it_opens_after_some_failures_and_for_longer_each_time() -> None:
    breaker = Breaker(random.Random(1))
    for _ in range(THRESHOLD - 1):
        breaker.failed(10.0)
    assert breaker.allows(10.0)
    breaker.failed(10.0)
    assert not breaker.allows(10.0 + 0.7 * FIRST)
    assert breaker.allows(10.0 + 1.3 * FIRST)
    breaker.failed(11.0)
    assert not breaker.allows(11.0 + 1.4 * FIRST)
    assert breaker.allows(11.0 + 2.6 * FIRST)


def test_one_success_closes_it() -> None:
    breaker = Breaker(random.Random(1))
    for _ in range(THRESHOLD + 3):
        breaker.failed(10.0)
    assert not breaker.allows(10.1)
    breaker.succeeded()
    assert breaker.allows(10.1)
    for _ in range(THRESHOLD - 1):
        breaker.failed(10.2)
    assert breaker.allows(10.2)


def test_pauses_double_up_to_a_bound_and_differ_between_pickers() -> None:
    waits = [pause(number, random.Random(number)) for number in range(100)]
    assert 0.75 * FIRST <= waits[0] <= 1.25 * FIRST
    assert max(waits) <= 1.25 * LONGEST
    assert min(waits[10:]) >= 0.75 * LONGEST
    assert len(set(waits)) == 100
