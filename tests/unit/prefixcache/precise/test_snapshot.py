"""The index in a file: written whole or not at all, and never believed when it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epp.kvevents.events import BlockStored
from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.snapshot import SnapshotError, load_snapshot, save_snapshot

SIZE = 16


def filled() -> PreciseIndex:
    index = PreciseIndex(1 << 24)
    for number, endpoint in enumerate(("10.0.0.1:8000", "10.0.0.2:8000")):
        data = np.random.default_rng(number).integers(0, 1000, 50 * SIZE, dtype=np.uint32).tobytes()
        index.apply(endpoint, [BlockStored(range(100 * number, 100 * number + 50), None, data, SIZE)])
    return index


async def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "index")
    assert await save_snapshot(filled(), path) == 100
    assert [file.name for file in tmp_path.iterdir()] == ["index"]
    fresh = PreciseIndex(1 << 24)
    assert await load_snapshot(fresh, path) == 100
    assert fresh.restored


async def test_a_file_that_cannot_be_finished_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    path.write_bytes(b"the last one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("epp.prefixcache.precise.snapshot.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        await save_snapshot(filled(), str(path))
    assert path.read_bytes() == b"the last one"
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


async def test_wherever_a_file_is_cut_it_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "index"
    await save_snapshot(filled(), str(whole))
    data = whole.read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, 200, 7), *range(200, len(data), 97), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(SnapshotError):
            await load_snapshot(PreciseIndex(1 << 24), str(cut))


async def test_numbers_that_cannot_be(tmp_path: Path) -> None:
    whole = tmp_path / "index"
    await save_snapshot(filled(), str(whole))
    data = bytearray(whole.read_bytes())
    header = int.from_bytes(data[8:16], "little")
    data[16 + header : 24 + header] = (1 << 40).to_bytes(8, "little")  # rows of the first slice
    whole.write_bytes(data)
    with pytest.raises(SnapshotError, match="it is damaged"):
        await load_snapshot(PreciseIndex(1 << 24), str(whole))
    data[8:16] = (1 << 40).to_bytes(8, "little")
    whole.write_bytes(data)
    with pytest.raises(SnapshotError, match="its header is damaged"):
        await load_snapshot(PreciseIndex(1 << 24), str(whole))
