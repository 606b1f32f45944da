"""Shapes by release, groups, extra keys, and what is wrong with a message."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from epp.kvevents import decoding
from epp.kvevents.decoding import Decoder
from epp.kvevents.events import AllBlocksCleared, BlockExtras, BlockRemoved, BlockStored, KVEvent

_encode = msgspec.msgpack.encode


def _events(events: Any, decoder: Decoder | None = None) -> list[KVEvent]:
    batch = (decoder or Decoder()).decode(_encode([1.5, events, 0]))
    assert batch is not None
    return batch.events


def _stored(**fields: Any) -> dict[str, Any]:
    return {"type": "BlockStored", "block_hashes": [7], "token_ids": [1, 2], "block_size": 2, **fields}


@pytest.mark.parametrize(
    "event",
    [
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None],  # SGLang
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None],  # vLLM 0.15
        ["BlockStored", [1, 2], 0, [5, 6, 7, 8], 2],
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, [None, None]],  # 0.18
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, [None, None], 0],  # 0.20
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, None, 0, "full_attention", None],  # 0.22
        ["BlockStored", [1, 2], None, [5, 6, 7, 8], 2, None, "GPU", None, None, 0, "mla_attention", None, 1, 2, 3],
        {
            "type": "BlockStored",
            "block_hashes": [b"\xff" * 24 + b"\0\0\0\0\0\0\0\1", b"\0\0\0\0\0\0\0\2"],
            "token_ids": [5, 6, 7, 8],
            "block_size": 2,
            "medium": "GPU",
            "session_id": "s",
            "lookahead_token_ids": [[1], [2]],
            "never_heard_of": {"a": [1]},
        },
    ],
)
def test_one_store_in_every_shape(event: Any) -> None:
    expected = BlockStored([1, 2], None, struct.pack("<4I", 5, 6, 7, 8), 2)
    for batch in ([1.5, [event]], [1.5, [event], 3], [1.5, [event], 3, "more"]):
        decoded = Decoder().decode(_encode(batch))
        assert decoded is not None
        assert decoded.events == [expected]
        assert decoded.rank == (3 if len(batch) > 2 else 0)
    for name in ("data_parallel_rank", "something"):
        decoded = Decoder().decode(_encode({"ts": 2, "events": [event], name: 4}))
        assert decoded is not None
        assert (decoded.timestamp, decoded.events) == (2.0, [expected])
        assert decoded.rank == (4 if name == "data_parallel_rank" else 0)


_SGLANG_SALTED = [
    ["BlockStored", [11, 12], None, [1, 2, 3, 4], 2, None, "GPU", {"cache_salt": "ada"}],  # 2025: behind the tier
    _stored(block_hashes=[11, 12], token_ids=[1, 2, 3, 4], cache_salt="ada", session_id="s", lora_name=None),
    _stored(block_hashes=[11, 12], token_ids=[1, 2, 3, 4], cache_salt="ada", extra_keys=[["ada"], None]),
]


@pytest.mark.parametrize("event", _SGLANG_SALTED)
def test_sglang_tells_the_salt_apart(event: Any) -> None:
    stored = BlockStored([11, 12], None, struct.pack("<4I", 1, 2, 3, 4), 2, extras=(BlockExtras((), "ada"), None))
    assert _events([event]) == [stored]
    # It is said of every block, and counts in the first one of a prompt: the others are chained to it.
    following = [*event[:2], 10, *event[3:]] if isinstance(event, list) else event | {"parent_block_hash": 10}
    following = following if isinstance(event, list) else {k: v for k, v in following.items() if k != "extra_keys"}
    assert _events([following]) == [BlockStored([11, 12], 10, struct.pack("<4I", 1, 2, 3, 4), 2)]


def test_sglang_with_a_draft_model_names_pairs_of_tokens() -> None:
    pairs = [[1, 2], [2, 3], [3, 4], [4, 9]]
    expected = BlockStored([5, 6], None, struct.pack("<4I", 1, 2, 3, 4), 2)
    array = ["BlockStored", [5, 6], None, pairs, 2, None, "GPU"]
    fields = _stored(block_hashes=[5, 6], token_ids=pairs, medium="GPU")
    decoder = Decoder()
    for event in (array, fields):
        assert _events([event], decoder) == [expected]
        assert _events([["BlockRemoved", [5]]] if event is array else [_removed(5)], decoder) == [BlockRemoved([5])]
    # Beside another event that cannot be read, too.
    assert _events([array, ["BlockStored", "?"]], decoder) == [expected]
    assert _events([fields, {"type": "BlockStored", "block_hashes": "?"}], decoder) == [expected]
    assert decoder.stats.errors == {"event": 2}


def _removed(value: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [value]}


def test_signed_hashes_and_short_digests() -> None:
    assert _events([["BlockRemoved", [-1, 5]]]) == [BlockRemoved([2**64 - 1, 5])]
    assert _events([["BlockRemoved", [b"\1\0", b"\0" * 30 + b"\2\0"]]]) == [BlockRemoved([256, 512])]
    assert _events([["BlockRemoved", [b"\0" * 31 + b"\3", 4]]]) == [BlockRemoved([3, 4])]
    assert _events([["BlockStored", [3], -2, [1], 1]]) == [BlockStored([3], 2**64 - 2, struct.pack("<I", 1), 1)]


def test_tiers_clear_and_a_move_without_tokens() -> None:
    events = _events(
        [
            {"type": "AllBlocksCleared"},
            {"type": "BlockStored", "block_hashes": [1], "block_size": 16, "medium": "CPU"},
            {"type": "BlockRemoved", "block_hashes": [1], "medium": "STORAGE"},
        ]
    )
    assert events == [AllBlocksCleared(), BlockStored([1], None, b"", 16, "", "cpu"), BlockRemoved([1], "storage")]


def test_only_groups_that_cover_the_whole_prefix() -> None:
    decoder = Decoder()
    events = _events(
        [
            _stored(group_idx=0, kv_cache_spec_kind="full_attention"),
            _stored(group_idx=1, kv_cache_spec_kind="sliding_window"),
            _stored(group_idx=2, kv_cache_spec_kind="invented"),
            _stored(group_idx=3),
            {"type": "BlockRemoved", "block_hashes": [7], "group_idx": 1},
            {"type": "BlockRemoved", "block_hashes": [7], "group_idx": 0},
            {"type": "BlockRemoved", "block_hashes": [7], "group_idx": 3},
            {"type": "BlockRemoved", "block_hashes": [7], "group_idx": 9},
            {"type": "BlockRemoved", "block_hashes": [7]},
        ],
        decoder,
    )
    assert [(type(event).__name__, event.group) for event in events if not isinstance(event, AllBlocksCleared)] == [
        ("BlockStored", 0),
        ("BlockStored", 3),
        ("BlockRemoved", 0),
        ("BlockRemoved", 3),
        ("BlockRemoved", 0),
    ]
    assert decoder.stats.skipped == {
        ("BlockStored", "sliding_window", "unsupported_cache_kind"): 1,
        ("BlockStored", "other", "unsupported_cache_kind"): 1,
        ("BlockRemoved", "sliding_window", "unsupported_cache_kind"): 1,
        ("BlockRemoved", "unknown", "unknown_group"): 1,
    }
    decoder.forget()
    assert _events([{"type": "BlockRemoved", "block_hashes": [7], "group_idx": 0}], decoder) == []


_MEDIA = "9f" * 32


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["salt"], BlockExtras((), "salt")),
        (["ada"], None),
        (["ada", [_MEDIA, -5], "salt", b"\1\2"], BlockExtras((_MEDIA, "prompt_embeds:0102"), "salt")),
        ([["lora", "ada", "/x"], ["mm", _MEDIA, 3], ["cache_salt", "s"]], BlockExtras((_MEDIA,), "s")),
        ([["mm", "a", 0], ["mm", "b", 9], ["prompt_embeds", b"\xff"]], BlockExtras(("a", "b", "prompt_embeds:ff"))),
        ([[1, 2, 3]], BlockExtras(("unknown:[1, 2, 3]",))),
        ([_MEDIA], BlockExtras((), _MEDIA)),  # releases that write maps put media in pairs
        ([], None),
    ],
)
def test_extra_keys_of_a_first_block(keys: Any, expected: BlockExtras | None) -> None:
    event = _stored(lora_name="ada", extra_keys=[keys])
    (stored,) = _events([event])
    assert isinstance(stored, BlockStored)
    assert stored.extras == ((expected,) if expected else ())
    assert stored.lora_name == "ada"


def test_bare_media_of_older_releases() -> None:
    def extras(parent: int | None, *keys: Any) -> tuple[BlockExtras | None, ...]:
        event = ["BlockStored", list(range(len(keys))), parent, [1] * len(keys), 1, None, "GPU", None, list(keys)]
        (stored,) = _events([event])
        assert isinstance(stored, BlockStored)
        return stored.extras

    assert extras(None, [_MEDIA, "salt"], [_MEDIA], None) == (
        BlockExtras((_MEDIA,), "salt"),
        BlockExtras((_MEDIA,)),
        None,
    )
    assert extras(1, ["uploaded-7"]) == (BlockExtras(("uploaded-7",)),)


def test_an_adapter_without_a_name_is_not_the_base_model() -> None:
    (stored,) = _events([_stored(lora_id=3)])
    assert isinstance(stored, BlockStored)
    assert stored.lora_name == "lora_id=3"


@pytest.mark.parametrize(
    "bad",
    [
        _stored(token_ids=[1]),
        _stored(token_ids=[-1, 2]),
        _stored(token_ids=[1, 2**32]),
        _stored(token_ids="ab"),
        _stored(block_hashes=[]),
        _stored(block_hashes=["a"]),
        _stored(block_hashes=7),
        _stored(block_size=-1, token_ids=[]),
        _stored(block_size=2**21, token_ids=[]) | {"token_ids": [1]},
        _stored(extra_keys=[["a"], ["b"]]),
        _stored(extra_keys="ab"),
        _stored(lora_name="x" * 5000),
        _stored(medium="x" * 5000),
        {"type": "BlockRemoved", "block_hashes": [1], "medium": "x" * 5000},
        {"type": "BlockRemoved"},
        {"type": "SomethingNew", "block_hashes": [1]},
        {"block_hashes": [1]},
        ["BlockStored"],
        ["SomethingNew", 1],
        [],
        7,
        None,
    ],
)
def test_one_bad_event_takes_no_other_along(bad: Any) -> None:
    good = _stored()
    decoder = Decoder()
    assert len(_events([good, bad, good], decoder)) == 2
    assert decoder.stats.errors == {"event": 1}
    payload = _encode([1.5, [good, bad, good], 0])
    assert len(list(Decoder().pieces(payload))) == 2


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\xc1" * 50,
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        _encode([1.0]),
        _encode(["x", []]),
        _encode({"events": []}),
        _encode([1.0, {}]),
        _encode([1.0, [_stored()]])[:-3],
    ],
)
def test_garbage_is_counted(payload: bytes) -> None:
    decoder = Decoder()
    assert decoder.decode(payload) is None
    assert list(decoder.pieces(payload)) == []
    assert decoder.stats.errors == {"batch": 2}


def test_too_long_and_too_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder()
    monkeypatch.setattr(decoding, "MAX_MESSAGE_BYTES", 10)
    assert decoder.decode(b"x" * 11) is None
    assert list(decoder.pieces(b"x" * 11)) == []
    assert decoder.stats.errors == {"too_long": 2}
    monkeypatch.undo()
    _events([_stored(group_idx=index) for index in range(1000)], decoder)
    removed = _events([{"type": "BlockRemoved", "block_hashes": [1], "group_idx": i} for i in range(1000)], decoder)
    assert len(removed) == decoding._MAX_GROUPS


def test_counts_add_up() -> None:
    one, two = Decoder(), Decoder()
    for decoder in (one, two):
        _events([_stored(), 7, _stored(kv_cache_spec_kind="mamba"), {"type": "AllBlocksCleared"}], decoder)
    one.stats.add(two.stats)
    assert one.stats == decoding.DecodeStats(
        batches=2,
        events=4,
        blocks_stored=2,
        clears=2,
        errors={"event": 2},
        skipped={("BlockStored", "mamba", "unsupported_cache_kind"): 2},
    )
