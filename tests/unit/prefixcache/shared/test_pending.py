"""The queue before the server: order, bound, and what becomes of endpoints whose removals were lost."""

from __future__ import annotations

from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored
from epp.prefixcache.shared.pending import BATCH_BLOCKS, Operation, Pending, cost

CLEARED = AllBlocksCleared()


def stored(first: int, blocks: int = 2) -> BlockStored:
    return BlockStored(range(first, first + blocks), None, bytes(64 * blocks), 16)


def taken(pending: Pending) -> list[tuple[str, object]]:
    return [(each.endpoint, each.event) for each in pending.take()]


def test_events_come_out_in_order_and_in_batches() -> None:
    pending = Pending(1 << 30)
    events = [stored(n, 16) for n in range(100)]
    pending.add("a", events)
    first = pending.take()
    assert len(first) == BATCH_BLOCKS // 16
    assert [each.event for each in [*first, *pending.take()]] == events
    assert (len(pending), pending.bytes) == (0, 0)
    assert pending.take() == []


def test_clears_come_alone_and_once() -> None:
    pending = Pending(1 << 20)
    pending.add("a", [stored(1), CLEARED, CLEARED])
    pending.add("b", [CLEARED])
    pending.add("a", [stored(5), CLEARED])
    assert taken(pending) == [("a", stored(1))]
    assert taken(pending) == [("a", CLEARED), ("b", CLEARED)]
    assert taken(pending) == [("a", stored(5))]
    assert taken(pending) == [("a", CLEARED)]
    pending.add("a", [CLEARED])  # told again after it was taken
    assert taken(pending) == [("a", CLEARED)]


def test_events_without_blocks_are_nothing() -> None:
    pending = Pending(1 << 20)
    pending.add("a", [BlockRemoved(()), BlockStored((), None, b"", 16)])
    assert (len(pending), pending.bytes) == (0, 0)


def test_lost_stores_are_counted_and_that_is_all() -> None:
    pending = Pending(2 * cost(stored(1)))
    pending.add("a", [stored(1), stored(3), stored(5), stored(7)])
    assert pending.dropped == 4
    assert not pending.stale
    assert taken(pending) == [("a", stored(1)), ("a", stored(3))]


def test_a_lost_removal_makes_stale_what_waits_of_the_endpoint() -> None:
    pending = Pending(2 * cost(stored(1)))
    pending.add("a", [stored(1)])
    pending.add("b", [stored(3)])
    pending.add("a", [BlockRemoved((1, 2))])
    assert (pending.stale, pending.dropped) == ({"a"}, 2)
    batch = pending.take()
    assert batch == [Operation("b", stored(3))]
    pending.add("a", [stored(9)])  # from after the loss
    assert taken(pending) == [("a", stored(9))]


def test_a_lost_clear_makes_stale_and_can_be_told_again() -> None:
    pending = Pending(cost(stored(1)))
    pending.add("a", [stored(1), CLEARED])
    assert (pending.stale, pending.dropped) == ({"a"}, 0)
    assert pending.take() == []
    pending.stale.clear()
    pending.add("a", [CLEARED])
    assert taken(pending) == [("a", CLEARED)]


def test_what_could_not_be_written_comes_first_again() -> None:
    pending = Pending(1 << 20)
    pending.add("a", [stored(1), stored(3)])
    batch = pending.take()
    pending.add("a", [stored(5)])
    pending.put_back(batch)
    assert pending.bytes == 3 * cost(stored(1))
    assert taken(pending) == [("a", stored(1)), ("a", stored(3)), ("a", stored(5))]
    assert pending.bytes == 0


def test_a_loss_while_a_batch_is_out_counts_for_the_batch() -> None:
    pending = Pending(cost(stored(1)))
    pending.add("a", [stored(1)])
    batch = pending.take()
    pending.add("b", [stored(3)])
    pending.add("a", [BlockRemoved((1,))])
    pending.put_back(batch)
    assert taken(pending) == [("b", stored(3))]


def test_a_refused_batch_makes_stale_who_had_removals_in_it() -> None:
    pending = Pending(1 << 20)
    pending.distrust([Operation("a", stored(1)), Operation("b", BlockRemoved((1,))), Operation("c", CLEARED)])
    assert pending.stale == {"b", "c"}
