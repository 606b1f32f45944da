"""Header messages by hand: most of what is left of a stream when its bodies do not come.

A few dozen short strings are read as fast here as by the protobuf library, and with cold caches, which a gateway of
few requests a second leaves us, in half the time: the library is much code. Like `wire.body_span` this knows the usual
shape only, and leaves everything else (`value` instead of `raw_value`, other orders, unknown fields, attributes, names
that are not UTF-8, a subset hint) to the library; what it reads, it reads exactly as the library does.

A gateway tells nearly the same headers with every request, so whole entries (`name: value`) that have been read before
are looked up (`KnownHeaders`) and not read again.
"""

from __future__ import annotations

from typing import Final

from epp.extproc.metadata import SUBSET
from epp.extproc.wire import length_at

REQUEST_HEADERS_TAG: Final = 0x12  # request_headers = 2
RESPONSE_HEADERS_TAG: Final = 0x1A  # response_headers = 3
_HEADERS_TAG: Final = 0x0A  # HttpHeaders.headers = 1, HeaderMap.headers = 1, HeaderValue.key = 1
_RAW_VALUE_TAG: Final = 0x1A  # HeaderValue.raw_value = 3
_END_TAG: Final = 0x18  # HttpHeaders.end_of_stream = 3
_METADATA_TAG: Final = 0x42  # metadata_context = 8
_CONFIG_TAG: Final = 0x5A  # protocol_config = 11
_SUBSET: Final = SUBSET.encode()


_MOST_ENTRIES: Final = 1024
_MOST_TAILS: Final = 256
_LONGEST: Final = 129  # an entry with one byte of length; a longer one is hardly repeated
_NOT_KEPT: Final = frozenset(
    {"x-request-id", "traceparent", "b3", "authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"}
)
"""New with every request, or a secret: nothing to keep."""


class KnownHeaders:
    """Entries and tails of header messages that have been read, by their bytes. One per service; bounded.

    `entries`: a `HeaderValue` with its tag and length -> name and value. `tails`: what stands behind the headers -> the
    modes that it tells. When one of them is full it begins anew: what gateways repeat is back after a request.
    """

    __slots__ = ("entries", "tails")

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[str, str]] = {}
        self.tails: dict[bytes, tuple[int, int] | None] = {}

    def keep_entry(self, entry: bytes, name: str, value: str) -> None:
        """Unless it is long, or not worth it."""
        if len(entry) > _LONGEST or name in _NOT_KEPT:
            return
        if len(self.entries) >= _MOST_ENTRIES:
            self.entries.clear()
        self.entries[entry] = name, value

    def keep_tail(self, tail: bytes, modes: tuple[int, int] | None) -> None:
        """Unless it is long."""
        if len(tail) > _LONGEST:
            return
        if len(self.tails) >= _MOST_TAILS:
            self.tails.clear()
        self.tails[tail] = modes


HeaderMessage = tuple[int, dict[str, str], bool, tuple[int, int] | None, bytes]
"""Kind, headers as `Incoming.headers` has them, whether they end the stream, modes as `Incoming.modes` has them, and
what stands behind the headers."""


def header_message(message: bytes, known: KnownHeaders) -> HeaderMessage | None:
    """Read a message that begins with one of the two tags; None: leave it to the protobuf library."""
    headers: dict[str, str] = {}
    entries = known.entries
    end_of_stream = False
    try:
        size, at = length_at(message, 1)
        end = at + size
        if at != end and message[at] == _HEADERS_TAG:
            size, at = length_at(message, at + 1)
            stop = at + size
            while at < stop:
                # One byte of length is usual, and what is known begins with tag and length: an entry that is longer, or
                # cut off, is not among it.
                until = at + 2 + message[at + 1]
                read = entries.get(message[at:until])
                if read is None:
                    if message[at] != _HEADERS_TAG:
                        return None
                    size, start = length_at(message, at + 1)
                    until = start + size
                    read = _entry(message[start:until], size)
                    if read is None:
                        return None
                    known.keep_entry(message[at:until], *read)
                name, value = read
                headers[name] = value
                at = until
            if at != stop:
                return None
        if at != end:
            if at + 2 != end or message[at] != _END_TAG or message[at + 1] > 1:
                return None
            end_of_stream = message[at + 1] == 1
        if end > len(message):
            return None
        rest = message[end:]
        if rest in known.tails:
            modes = known.tails[rest]
        else:
            if rest.find(_SUBSET) >= 0:
                return None
            modes = _modes(rest)
            known.keep_tail(rest, modes)
    except (IndexError, ValueError):
        return None
    return message[0] >> 3, headers, end_of_stream, modes, rest


def _entry(entry: bytes, size: int) -> tuple[str, str] | None:
    """Name and value of a `HeaderValue` that is `size` bytes long. IndexError, ValueError or None: not the usual."""
    if len(entry) != size or entry[0] != _HEADERS_TAG:  # cut off, or another field first
        return None
    length, at = length_at(entry, 1)
    stop = at + length
    name = entry[at:stop].decode().lower()
    if stop == size:
        return name, ""
    if stop > size or entry[stop] != _RAW_VALUE_TAG:
        return None
    length, at = length_at(entry, stop + 1)
    if at + length != size:
        return None
    return name, entry[at:].decode("utf-8", "backslashreplace")


def _modes(rest: bytes) -> tuple[int, int] | None:
    """The modes in `protocol_config`, None without one. ValueError when the fields are not the usual, in order."""
    at, total = 0, len(rest)
    if at != total and rest[at] == _METADATA_TAG:
        size, at = length_at(rest, at + 1)
        at += size
    if at == total:
        return None
    if at > total or rest[at] != _CONFIG_TAG or at + 2 + rest[at + 1] != total:
        raise ValueError("not the usual shape")
    modes = [0, 0, 0]
    last = -1
    for field in range(at + 2, total, 2):
        number = (rest[field] >> 3) - 1
        if rest[field] & 7 or not last < number < 3 or rest[field + 1] > 127:
            raise ValueError("not the usual shape")
        modes[number] = rest[field + 1]
        last = number
    return modes[0], modes[1]
