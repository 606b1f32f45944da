"""Frames captured from real vLLM servers decode to what was written down beside them."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from epp.kvevents.decoding import Decoder
from epp.kvevents.events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from epp.kvevents.replay import END, read_answer

_DATA = Path(__file__).parents[2] / "data" / "kvevents"
_SESSIONS = sorted(path.parent.name for path in _DATA.glob("*/frames.jsonl"))


def _lines(session: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_DATA / session / name).read_text().splitlines()]


def _number(value: Any) -> int | None:
    if isinstance(value, dict):
        return int(value["bytes"][-16:], 16)
    assert value is None or isinstance(value, int)
    return value


def _same(event: KVEvent, written: dict[str, Any]) -> None:
    if written["type"] == "AllBlocksCleared":
        assert event == AllBlocksCleared()
        return
    assert isinstance(event, BlockStored | BlockRemoved)
    assert list(event.block_hashes) == [_number(value) for value in written["block_hashes"]]
    assert event.medium == written["medium"].lower()
    assert event.group == written["group_idx"]
    if written["type"] == "BlockRemoved":
        assert isinstance(event, BlockRemoved)
        return
    assert isinstance(event, BlockStored)
    assert event.parent_hash == _number(written["parent_block_hash"])
    assert event.token_ids == struct.pack(f"<{len(written['token_ids'])}I", *written["token_ids"])
    assert event.block_size == written["block_size"]
    assert event.lora_name == (written["lora_name"] or "")
    salts = [next((key for key in keys or () if key.startswith("salt")), "") for keys in written["extra_keys"]]
    assert [extra.cache_salt if extra else "" for extra in event.extras or [None] * len(salts)] == salts
    assert all(not extra.media for extra in event.extras if extra)


@pytest.mark.parametrize("session", _SESSIONS)
def test_every_frame(session: str) -> None:
    decoder = Decoder()
    frames, written = _lines(session, "frames.jsonl"), _lines(session, "events.jsonl")
    assert len(frames) == len(written) > 0
    for frame, expected in zip(frames, written, strict=True):
        topic, number, payload = (base64.b64decode(part) for part in frame["frames"])
        assert topic.decode() == expected["topic"]
        assert int.from_bytes(number, "big") == expected["seq"]
        batch = decoder.decode(payload)
        assert batch is not None
        stamp, events, rank = expected["payload"]
        assert (batch.timestamp, batch.rank) == (stamp, rank)
        assert len(batch.events) == len(events)
        for event, description in zip(batch.events, events, strict=True):
            _same(event, description)
        pieces = list(Decoder(decoder.stats).pieces(payload))
        stored = [event for event in batch.events if not isinstance(event, BlockRemoved)]
        # Alone, a removal of a group of which nothing was stored before is not for the index.
        assert [event for piece in pieces for event in piece.events if not isinstance(event, BlockRemoved)] == stored
    assert decoder.stats.errors == {}


def test_both_ranks_name_themselves() -> None:
    for rank in (0, 1):
        payload = base64.b64decode(_lines(f"dp2-rank{rank}", "frames.jsonl")[0]["frames"][2])
        batch = Decoder().decode(payload)
        assert batch is not None
        assert batch.rank == rank


@pytest.mark.parametrize("session", [name for name in _SESSIONS if (_DATA / name / "replay.json").exists()])
def test_captured_replay(session: str) -> None:
    replay = json.loads((_DATA / session / "replay.json").read_text())
    live = [base64.b64decode(frame["frames"][2]) for frame in _lines(session, "frames.jsonl")]
    for start, answers in replay.items():
        read = [read_answer([bytes.fromhex(frame) for frame in frames]) for frames in answers]
        assert read[-1] is not None
        assert read[-1].seq == END
        messages = [(answer.seq, answer.payload) for answer in read[:-1] if answer]
        assert messages == list(enumerate(live))[int(start) :]


@pytest.mark.parametrize(
    "frames",
    [[], [b""], [b"", b"1234567"], [b"", b"topic", b"123456789", b""], [b"", b"", b"12345678", b"", b""], [b"a"] * 9],
)
def test_what_is_no_answer(frames: list[bytes]) -> None:
    assert read_answer(frames) is None
