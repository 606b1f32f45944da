"""Names and fields in the server, and from its answers to how far each endpoint's cache reaches."""

from __future__ import annotations

import numpy as np
import pytest

from epp.prefixcache.shared.layout import NAME_OVERHEAD, field, holders, marker, packed, prefix, unpacked
from epp.prefixcache.shared.matching import Reach, Walk
from epp.prefixcache.shared.server import server_url, shown


def test_names_depend_on_the_seed_and_have_one_length() -> None:
    assert prefix("a") != prefix("b")
    assert {len(prefix(seed)) + 1 for seed in ("", "a", "x" * 99)} == {NAME_OVERHEAD}


@pytest.mark.parametrize("endpoint", ["10.0.0.1:8000", "[fd00::1]:8000"])
def test_a_field_is_read_as_it_was_written(endpoint: str) -> None:
    text = field(endpoint, "cpu", 3)
    assert text.startswith(marker(endpoint))
    assert holders(text.encode()) == [(endpoint, "cpu")]


def test_a_tier_with_the_separator_in_its_name_breaks_nothing() -> None:
    assert holders(field("e:1", "a|b\n|c", 0).encode()) == [("e:1", "abc")]


def test_fields_that_are_not_ours_are_left_out() -> None:
    assert holders(b'{"PodIdentifier":"x"}\n\xff\xfe\na|b\nc|gpu|0') == [("c", "gpu")]


def test_keys_pass_as_bytes_and_come_back() -> None:
    keys = np.array([1, (1 << 64) - 1, 0xABCDEF], dtype=np.uint64)
    data = packed(keys)
    assert data[:8] == b"\1\0\0\0\0\0\0\0"
    known, back = unpacked([data[:8], None, data[16:], b"short"])
    assert known == [True, False, True, False]
    assert back.tolist() == [1, 0, 0xABCDEF, 0]


def test_a_walk_counts_without_gaps_and_by_the_best_tier() -> None:
    walk = Walk({"cpu": 0.5})
    walk.take([b"a|gpu|0\nb|cpu|0\na|cpu|0", 3, b"a|cpu|0\nc|gpu|0", 2], 5)
    assert not walk.ended
    assert walk.reach == {"a": Reach(5, 4.0), "b": Reach(3, 1.5)}
    walk.take([b"a|gpu|0\nb|gpu|0", 1], 8)
    assert walk.ended  # two of the eight were not answered: a gap
    assert walk.reach == {"a": Reach(6, 5.0), "b": Reach(3, 1.5)}


def test_a_walk_knows_what_tiers_are_also_called() -> None:
    walk = Walk({"cpu": 0.5})
    walk.take([b"a|cpu_pinned|0\nb|disk|0", 2], 2)
    assert walk.reach == {"a": Reach(2, 1.0), "b": Reach(2, 2.0)}


def test_a_walk_ends_when_nobody_holds_on() -> None:
    walk = Walk({})
    walk.take([b"a|gpu|0", 2, b"b|gpu|0", 2, b"a|gpu|0", 2], 6)
    assert walk.ended
    assert walk.reach == {"a": Reach(2, 2.0)}
    empty = Walk({})
    empty.take([], 4)
    assert (empty.ended, empty.reach) == (True, {})


def test_an_answer_of_another_kind_is_no_match() -> None:
    walk = Walk({})
    walk.take([1, b"x", b"a|gpu|0", 2], 4)
    assert (walk.ended, walk.reach) == (True, {})


@pytest.mark.parametrize(
    ("address", "url", "said"),
    [
        ("cache:6380", "redis://cache:6380", "cache:6380"),
        ("valkey://cache", "redis://cache", "cache:6379"),
        (" valkeys://u:secret@cache:1/3", "rediss://u:secret@cache:1/3", "cache:1"),
        ("rediss://cache?ssl_ca_certs=/ca.pem", "rediss://cache?ssl_ca_certs=/ca.pem", "cache:6379"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2", "/run/redis.sock"),
    ],
)
def test_addresses(address: str, url: str, said: str) -> None:
    assert server_url(address) == url
    assert shown(url) == said


@pytest.mark.parametrize("address", ["", "redis://", "http://x", "x:0", "x:99999", "x:one", "redis://x?ssl=1"])
def test_addresses_that_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"^address: "):
        server_url(address)
