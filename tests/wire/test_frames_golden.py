"""Conversations byte for byte, written out from RFC 9113 and RFC 7541: any change on the wire shows here."""

from __future__ import annotations

from typing import Any

import pytest

from epp.transport.call import Call, CloseReason
from epp.transport.connection import Connection
from epp.transport.limits import Limits, TransportStats

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVER_SETTINGS = (
    "000018 04 00 00000000  0003 00010000  0004 00100000  0005 00004000  0006 00010000"  # streams, window, frame, list
    "000004 08 00 00000000  03ff0001"  # 64 MiB for the connection
)
REQUEST = (
    "83 86"  # :method POST, :scheme http
    "44 07 2f742f4563686f"  # :path /t/Echo
    "41 01 78"  # :authority x
    "5f 10 6170706c69636174696f6e2f67727063"  # content-type application/grpc
)
RESPONSE = "88 00 0c 636f6e74656e742d74797065 10 6170706c69636174696f6e2f67727063"
STATUS_OK = "00 0b 677270632d737461747573 01 30"


class Echo:
    def __init__(self, call: Call) -> None:
        self.call = call

    def receive(self, message: bytes) -> None:
        self.call.send(message)

    def half_closed(self) -> None:
        self.call.finish()

    def closed(self, reason: CloseReason) -> None:
        pass


def frame(kind: int, flags: int, stream: int, payload: str = "") -> str:
    body = bytes.fromhex(payload)
    return (
        len(body).to_bytes(3, "big").hex() + bytes((kind, flags)).hex() + stream.to_bytes(4, "big").hex() + body.hex()
    )


SETTINGS = frame(4, 0, 0)
ACK = frame(4, 1, 0)
OPEN = frame(1, 4, 1, REQUEST)

CONVERSATIONS: dict[str, tuple[str, str]] = {
    "settings": (SETTINGS, ACK),
    "ping": (SETTINGS + frame(6, 0, 0, "0102030405060708"), frame(6, 1, 0, "0102030405060708") + ACK),
    "a call": (
        SETTINGS + OPEN + frame(0, 1, 1, "00 00000003 616263"),
        ACK + frame(1, 4, 1, RESPONSE) + frame(0, 0, 1, "00 00000003 616263") + frame(1, 5, 1, STATUS_OK),
    ),
    "a call in pieces, then the end in its own frame": (
        SETTINGS + OPEN + frame(0, 0, 1, "00 000000") + frame(0, 8, 1, "02 03 616263 0000") + frame(0, 1, 1),
        ACK + frame(1, 4, 1, RESPONSE) + frame(0, 0, 1, "00 00000003 616263") + frame(1, 5, 1, STATUS_OK),
    ),
    "a call without messages": (SETTINGS + frame(1, 5, 1, REQUEST), ACK + frame(1, 5, 1, RESPONSE + STATUS_OK)),
    "headers in two frames": (
        SETTINGS + frame(1, 1, 1, REQUEST[:13]) + frame(9, 4, 1, REQUEST[13:]),
        ACK + frame(1, 5, 1, RESPONSE + STATUS_OK),
    ),
    "an unknown method": (
        SETTINGS + frame(1, 5, 1, REQUEST.replace("4563686f", "4e6f6e65")),
        ACK
        + frame(
            1, 5, 1,
            RESPONSE + "00 0b 677270632d737461747573 02 3132"
            + "00 0c 677270632d6d657373616765 16" + b"unknown method /t/None".hex(),
        ),
    ),
    "two calls, one read": (
        SETTINGS + OPEN + frame(1, 4, 3, "83 86 c0 bf be")
        + frame(0, 0, 3, "00 00000001 33") + frame(0, 0, 1, "00 00000001 31"),
        ACK
        + frame(1, 4, 3, RESPONSE) + frame(0, 0, 3, "00 00000001 33")
        + frame(1, 4, 1, RESPONSE) + frame(0, 0, 1, "00 00000001 31"),
    ),
    "a reset": (
        SETTINGS + OPEN + frame(3, 0, 1, "00000008") + frame(6, 0, 0, "00" * 8),
        frame(6, 1, 0, "00" * 8) + ACK,
    ),
    "a protocol error": (
        SETTINGS + frame(6, 0, 0, "00"),
        ACK + frame(7, 0, 0, "00000000 00000006" + b"PING of 1 bytes".hex()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("cut", [1, 7, 1 << 20], ids=["byte by byte", "7 bytes", "at once"])
@pytest.mark.parametrize(("heard", "said"), CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_conversation(heard: str, said: str, cut: int) -> None:
    connection = Connection(
        {"/t/Echo": Echo},
        limits=Limits(),
        stats=TransportStats(),
        clock=lambda: 0.0,
        call_later=_no_timer,
        wake=lambda: None,
    )
    data = PREFACE + bytes.fromhex(heard)
    for start in range(0, len(data), cut):
        connection.receive(data[start : start + cut])
    assert connection.take().hex() == _reordered(SERVER_SETTINGS, said)


def _reordered(greeting: str, said: str) -> str:
    """Answers to PINGs leave before everything else that is written with them."""
    said = bytes.fromhex(said).hex()
    pong = said[: 2 * 17] if said[6:10] == "0601" else ""
    return pong + bytes.fromhex(greeting).hex() + said[len(pong) :]


def _no_timer(seconds: float, ring: Any) -> Any:
    raise AssertionError("no call has a deadline here")
