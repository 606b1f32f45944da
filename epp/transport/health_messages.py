"""The messages of `grpc.health.v1`, written by hand: a string, an enum and a map of two fields.

Wire format: https://protobuf.dev/programming-guides/encoding; the fields are those of grpc/health/v1/health.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ServingStatus(IntEnum):
    """`HealthCheckResponse.ServingStatus`."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


_SERVICE = 0x0A  # HealthCheckRequest: field 1, length-delimited
_STATUS = 0x08  # HealthCheckResponse: field 1, varint
_ENTRY = 0x0A  # HealthListResponse: field 1, map<string, HealthCheckResponse>
_KEY = 0x0A
_VALUE = 0x12


def decode_request(message: bytes) -> str:
    """The service name of a `HealthCheckRequest`; unknown fields are skipped. ValueError: it is damaged."""
    service = ""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            if tag == _SERVICE:
                service = message[at : at + length].decode()  # a UnicodeDecodeError is a ValueError
            at += length
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at > len(message):
            raise ValueError(f"a field ends at byte {at} of {len(message)}")
    return service


def encode_request(service: str) -> bytes:
    """A `HealthCheckRequest`."""
    name = service.encode()
    return bytes((_SERVICE,)) + _length(name) + name if name else b""


def encode_response(status: ServingStatus) -> bytes:
    """A `HealthCheckResponse`."""
    return bytes((_STATUS, status)) if status else b""


def encode_list(statuses: Mapping[str, ServingStatus]) -> bytes:
    """A `HealthListResponse`."""
    result = b""
    for service, status in statuses.items():
        name, value = service.encode(), encode_response(status)
        entry = bytes((_KEY,)) + _length(name) + name + bytes((_VALUE,)) + _length(value) + value
        result += bytes((_ENTRY,)) + _length(entry) + entry
    return result


def _length(content: bytes) -> bytes:
    n = len(content)
    result = bytearray()
    while n > 0x7F:
        result.append(n & 0x7F | 0x80)
        n >>= 7
    result.append(n)
    return bytes(result)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"a number is cut off or too long at byte {at}")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
