"""The index in a file, so that a picker that starts again does not start cold.

The event loop copies the rows in slices and a thread writes them, to a file of its own that takes the other's place
when it is complete. What is loaded is held in planes of its own, beside those of the events: it counts at once, and is
dropped as a whole when it has not been confirmed in time.
"""

from __future__ import annotations

import asyncio
import os
import struct
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from epp.prefixcache.precise.index import PreciseIndex
from epp.prefixcache.precise.tiers import SPECULATIVE

_MAGIC = b"EPPIDX1\n"
_LENGTH = struct.Struct("<Q")
SLICE = 1 << 15
_MOST_HEADER = 1 << 26


class SnapshotError(ValueError):
    """The file is not a snapshot that this index can use."""


class _Header(msgspec.Struct):
    seed: str
    block_sizes: list[int]
    sizes: dict[str, int]
    lanes: dict[str, int]
    adapters: list[str]
    planes: list[tuple[str, int, int]]  # tier, group, words


async def save_snapshot(index: PreciseIndex, path: str) -> int:
    """Write all blocks; returns how many. The event loop is held for half a millisecond at a time. Raises OSError."""
    blocks = index.blocks
    names = index.tiers.names
    planes = [key for key in blocks.planes if names[key[0]] != SPECULATIVE]
    header = _Header(
        index.hasher.seed,
        list(index.block_sizes),
        index.endpoint_sizes(),
        dict(index.lanes.endpoints()),
        sorted(index.adapters),
        [(names[tier], group, len(blocks.planes[tier, group])) for tier, group in planes],
    )
    words = [len(blocks.planes[key]) for key in planes]
    temporary = f"{path}.{os.getpid()}.tmp"
    file: BinaryIO = await asyncio.to_thread(open, temporary, "wb")
    count = 0
    try:
        encoded = msgspec.msgpack.encode(header)
        await asyncio.to_thread(file.write, _MAGIC + _LENGTH.pack(len(encoded)) + encoded)
        begin = 0
        while begin < index.blocks.high:
            end = min(begin + SLICE, index.blocks.high)
            rows = np.flatnonzero(index.blocks.key[begin:end]) + begin
            columns = [index.blocks.key[rows], index.blocks.engine[rows]]
            for key, number in zip(planes, words, strict=True):
                held = index.blocks.planes.get(key, [])
                columns += [held[n][rows] if n < len(held) else np.zeros_like(columns[0]) for n in range(number)]
            count += len(rows)
            data = b"".join([_LENGTH.pack(len(rows)), *(column.tobytes() for column in columns)])
            await asyncio.to_thread(file.write, data)
            begin = end
        await asyncio.to_thread(_finish, file, temporary, path)
    except BaseException:
        file.close()
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    return count


def _finish(file: BinaryIO, temporary: str, path: str) -> None:
    file.write(_LENGTH.pack(0))
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(temporary, path)


async def load_snapshot(index: PreciseIndex, path: str) -> int:
    """Add the blocks of a file to an index; returns how many. Raises FileNotFoundError, OSError, `SnapshotError`."""
    file: BinaryIO = await asyncio.to_thread(open, path, "rb")
    with file:
        header = _read_header(file)
        if header.seed != index.hasher.seed:
            raise SnapshotError("it was written with another hashSeed")
        count = 0
        lanes = index.restore(header.block_sizes, header.sizes, list(header.lanes), header.adapters)
        mapping = list(zip(header.lanes.values(), lanes, strict=True))
        width = 2 + sum(words for _, _, words in header.planes)
        while True:
            table = await asyncio.to_thread(_read_slice, file, width)
            if table is None:
                return count
            at = 2
            planes: list[tuple[str, int, list[NDArray[np.uint64]]]] = []
            for tier, group, words in header.planes:
                planes.append((tier, group, _translate(table[at : at + words], mapping, index.lanes.words)))
                at += words
            index.restore_rows(table[0], table[1], planes)
            count += table.shape[1]


def _read_header(file: BinaryIO) -> _Header:
    start = file.read(len(_MAGIC) + _LENGTH.size)
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + _LENGTH.size:
        raise SnapshotError("it is no snapshot of this version")
    (length,) = _LENGTH.unpack(start[len(_MAGIC) :])
    if length > _MOST_HEADER:
        raise SnapshotError("its header is damaged")
    try:
        return msgspec.msgpack.decode(file.read(length), type=_Header)
    except msgspec.MsgspecError as error:
        raise SnapshotError(f"its header is damaged: {error}") from error


def _read_slice(file: BinaryIO, width: int) -> NDArray[np.uint64] | None:
    start = file.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        raise SnapshotError("it ends too early")
    (rows,) = _LENGTH.unpack(start)
    if rows == 0 and not file.read(1):
        return None
    if rows > SLICE:
        raise SnapshotError("it is damaged")
    if rows == 0:
        file.seek(-1, os.SEEK_CUR)
    data = file.read(rows * width * 8)
    if len(data) < rows * width * 8:
        raise SnapshotError("it ends too early")
    table: NDArray[np.uint64] = np.frombuffer(data, dtype=np.uint64).reshape(width, rows)
    return table


def _translate(table: NDArray[Any], mapping: list[tuple[int, int]], words: int) -> list[NDArray[np.uint64]]:
    """Holder bits under the lanes of this process."""
    out = [np.zeros(table.shape[1], dtype=np.uint64) for _ in range(words)]
    for before, now in mapping:
        if before // 64 < len(table):
            bit = (table[before // 64] >> np.uint64(before % 64)) & np.uint64(1)
            out[now // 64] |= bit << np.uint64(now % 64)
    return out
