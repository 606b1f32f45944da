"""Width and height of an inline image, from its header alone."""

from __future__ import annotations

import base64
import binascii

_PNG = b"\x89PNG\r\n\x1a\n"
_GIFS = (b"GIF87a", b"GIF89a")
_JPEG = b"\xff\xd8"
# A frame header of a JPEG: SOF0 to SOF15 without the tables and restart markers that lie between them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset({0x01, *range(0xD0, 0xDA)})
_HEADER_CHARS = 64
_SEARCH_CHARS = 1 << 17


def inline_image_size(content: str) -> tuple[int, int] | None:
    """`(width, height)` in pixels of a PNG, GIF or JPEG given as base64, bare or in a `data:image/…` URL.

    None for anything else: a link, another format, damaged data. A JPEG's size stands behind its metadata; it is
    looked for in the first 128 KiB of base64.
    """
    if content.startswith("data:image/"):
        start = content.find("base64,")
        if start < 0:
            return None
        start += len("base64,")
    elif ":" in content[:16]:
        return None
    else:
        start = 0
    size = _size(_decoded(content[start : start + _HEADER_CHARS]))
    if size is None and content.startswith("/9j/", start):  # how every JPEG begins in base64
        size = _jpeg_size(_decoded(content[start : start + _SEARCH_CHARS]))
    return size if size is not None and size[0] > 0 and size[1] > 0 else None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text[: len(text) & ~3])
    except (binascii.Error, ValueError):
        return b""


def _size(data: bytes) -> tuple[int, int] | None:
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:
        return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    if data.startswith(_GIFS) and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _FRAMES:
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        elif marker in _STANDALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None
