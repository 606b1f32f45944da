"""Any bytes at all as KV event messages and replay answers: no exception, no unbounded time, the counts add up.

python tests/fuzz/kvevents_fuzz.py -max_total_time=600    # guided by coverage, needs atheris
python tests/fuzz/kvevents_fuzz.py --random 20            # seconds of damaged captured frames, needs nothing
"""

from __future__ import annotations

import base64
import importlib
import json
import random
import sys
import time
from pathlib import Path

GUIDED = __name__ == "__main__" and "--random" not in sys.argv
if GUIDED:
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is missing: pip install atheris (--random goes without it)")

    with atheris.instrument_imports(include=["epp.kvevents"]):
        importlib.import_module("epp.kvevents.decoding")

from epp.kvevents.bound import topic_endpoint  # noqa: E402
from epp.kvevents.decoding import Decoder  # noqa: E402
from epp.kvevents.events import BlockRemoved, BlockStored  # noqa: E402
from epp.kvevents.replay import read_answer  # noqa: E402
from epp.kvevents.sequence import SequenceTracker, Step  # noqa: E402

_DATA = Path(__file__).parents[1] / "data" / "kvevents"
_INSERTS = (
    b"\x91" * 1100,
    b"\x81\xa1a" * 600,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc0",
    b"\xd3\x80\0\0\0\0\0\0\0",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xcb\x7f\xf0\0\0\0\0\0\0",
    b"\xd6\xff\0\0\0\0",
    b"\xabBlockStored",
    b"\xacBlockRemoved",
    b"\xa4type",
    b"\x93\xa2mm\xa1x\0",
)


def captured() -> list[bytes]:
    """The payloads that real servers published."""
    return [
        base64.b64decode(json.loads(line)["frames"][2])
        for file in sorted(_DATA.glob("*/frames.jsonl"))
        for line in file.read_text().splitlines()
    ]


def damaged(rng: random.Random, payload: bytes) -> bytes:
    """`payload` after a few cuts, flips, doublings and insertions."""
    data = bytearray(payload)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data)) if rng.random() < 0.5 else rng.randint(0, min(len(data), 60))
        match rng.randint(0, 4):
            case 0:
                del data[at : at + rng.randint(1, 20)]
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randint(0, 7)
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 3:
                data[at:at] = rng.choice(_INSERTS)
            case _:
                del data[at:]
    return bytes(data)


def run(data: bytes) -> int:
    """Feed `data`; returns how many events came out. AssertionError: something that must hold does not."""
    decoder = Decoder()
    stats = decoder.stats
    batch = decoder.decode(data)
    events = [] if batch is None else batch.events
    assert (batch is None) == (stats.errors.get("batch", 0) + stats.errors.get("too_long", 0) > 0)
    assert stats.events == len(events)
    blocks = 0
    for event in events:
        if isinstance(event, BlockStored):
            blocks += len(event.block_hashes)
            assert len(event.token_ids) in (0, 4 * len(event.block_hashes) * event.block_size)
            assert len(event.extras) in (0, len(event.block_hashes))
        if isinstance(event, BlockStored | BlockRemoved):
            assert all(0 <= value < 2**64 for value in event.block_hashes)
            assert event.medium == event.medium.lower()
    assert stats.blocks_stored == blocks
    again = [event for piece in Decoder().pieces(data) for event in piece.events]
    assert repr(again) == repr(events)
    answer = read_answer([data[:3], data[3:11], data[11:]])
    topic_endpoint(data)
    tracker = SequenceTracker()
    for index in range(0, min(len(data), 64)):
        seq = data[index]
        step = tracker.live(seq, data[index:]) if seq & 1 else tracker.replayed(seq, data[index:], first=bool(seq & 2))
        if step is not Step.SKIP:
            tracker.applied(seq, data[index:])
            assert tracker.last == seq
    return len(events) + (answer is not None)


def run_random(seconds: float, seed: int) -> tuple[int, int]:
    """(inputs, inputs from which something could still be read) of damaged real messages."""
    rng = random.Random(seed)
    corpus = captured()
    inputs = understood = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        inputs += 1
        understood += run(damaged(rng, rng.choice(corpus))) > 1
    return inputs, understood


def main() -> None:
    if GUIDED:
        atheris.Setup(sys.argv, run)
        atheris.Fuzz()
        return
    seconds = float(sys.argv[sys.argv.index("--random") + 1])
    print("inputs, understood:", *run_random(seconds, time.time_ns()))


if __name__ == "__main__":
    main()
