"""Header blocks: decoding with its bounds and rules, and the few blocks that a gRPC server sends."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

import hpack
from hpack.exceptions import HPACKError, OversizedHeaderListError

from epp.transport.frames import ConnectionFault, ErrorCode, StreamFault

Metadata = Sequence[tuple[bytes, bytes]]

_CONNECTION_SPECIFIC = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_REQUEST_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_CACHED_BLOCKS = 1024


class HeaderDecoder:
    """HPACK of one connection.

    A proxy sends the same few headers on every stream, so that after the first ones a block is a handful of table
    indexes. A block that left the table as it was is remembered until the table changes.
    """

    def __init__(self, *, header_list: int, headers: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=header_list)
        self._entries = self._decoder.header_table.dynamic_entries
        self._headers = headers
        self._known: dict[bytes, Metadata] = {}

    def decode(self, block: bytes, stream_id: int) -> Metadata:
        """The request's headers, pseudo-headers included and checked. Raises a fault."""
        known = self._known.get(block)
        if known is not None:
            return known
        decoded, changed = self._decode(block, stream_id)
        check_request(decoded, stream_id)
        if changed:
            self._known.clear()
        elif len(self._known) < _CACHED_BLOCKS:
            self._known[block] = decoded
        return decoded

    def skip(self, block: bytes, stream_id: int) -> None:
        """Decode for the table's sake: trailers, or headers of a stream that is gone."""
        if self._decode(block, stream_id)[1]:
            self._known.clear()

    def _decode(self, block: bytes, stream_id: int) -> tuple[Metadata, bool]:
        entries = self._entries
        before = (len(entries), entries[0] if entries else None, self._decoder.header_table_size)
        try:
            decoded = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"header list too large: {error}") from error
        except (HPACKError, UnicodeDecodeError, IndexError) as error:
            raise ConnectionFault(
                ErrorCode.COMPRESSION_ERROR, f"header block of stream {stream_id}: {error}"
            ) from error
        after = (len(entries), entries[0] if entries else None, self._decoder.header_table_size)
        changed = before[0] != after[0] or before[1] is not after[1] or before[2] != after[2]
        if len(decoded) > self._headers:
            raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, f"{len(decoded)} headers")
        return decoded, changed


def check_request(headers: Metadata, stream_id: int) -> None:
    """RFC 9113 section 8.3: pseudo-headers first, once each, all that are needed; names in lower case."""
    seen: set[bytes] = set()
    regular = False
    for name, value in headers:
        if name[:1] == b":":
            if regular or name in seen or name not in _REQUEST_PSEUDO:
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"pseudo-header {name!r} out of place")
            seen.add(name)
            continue
        regular = True
        if not name or name != name.lower() or name in _CONNECTION_SPECIFIC:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"header name {name!r} is not allowed")
        if name == b"te" and value != b"trailers":
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"te: {value!r}, only trailers is allowed")
        if b"\0" in value or b"\r" in value or b"\n" in value:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, f"header {name!r} has a control character")
    if not {b":method", b":scheme", b":path"} <= seen:
        raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a request needs :method, :scheme and :path")


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table, without Huffman coding: the same bytes on every connection."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)])
    rest = len(text) - 127
    encoded = bytearray([127])
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    encoded.append(rest)
    return bytes(encoded)


STATUS_200 = b"\x88"  # index 8 of the static table
_CONTENT_TYPE = b"\x0f\x10"  # literal without indexing, name is index 31 of the static table
RESPONSE = STATUS_200 + _CONTENT_TYPE + _length(b"application/grpc") + b"application/grpc"
TRAILERS_OK = _literal(b"grpc-status", b"0")


def trailers(code: int, message: str) -> bytes:
    """The block that ends a call."""
    if code == 0 and not message:
        return TRAILERS_OK
    block = _literal(b"grpc-status", str(code).encode())
    if message:
        # gRPC's percent-encoding keeps printable ASCII but for the percent sign.
        text = quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
        block += _literal(b"grpc-message", text.encode()[:4096])
    return block


def plain_response(status: int) -> bytes:
    """The block of a response that is not gRPC (a wrong content type)."""
    return _literal(b":status", str(status).encode()) + _literal(b"content-length", b"0")
