"""A client in plain bytes: it can break any rule of HTTP/2, and reads what the connection answers frame by frame."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import hpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epp.transport import frames as f
from epp.transport.call import Call, CloseReason
from epp.transport.connection import Connection
from epp.transport.limits import Limits, TransportStats

NAMES = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
]
REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t/Echo"),
    (":authority", "picker"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class Frame(NamedTuple):
    """What the connection wrote."""

    kind: str
    flags: int
    stream_id: int
    payload: bytes

    @property
    def code(self) -> str:
        """The error of RST_STREAM and GOAWAY."""
        start = 4 if self.kind == "GOAWAY" else 0
        return f.ErrorCode(int.from_bytes(self.payload[start : start + 4], "big")).name


class Recorder:
    """A stream that remembers; `reply` is called with the call and each message."""

    def __init__(self, call: Call, reply: Callable[[Call, bytes], None] | None = None) -> None:
        self.call = call
        self.messages: list[bytes] = []
        self.ended = False
        self.reasons: list[CloseReason] = []
        self._reply = reply

    def receive(self, message: bytes) -> None:
        assert not self.reasons
        self.messages.append(message)
        if self._reply is not None:
            self._reply(self.call, message)

    def half_closed(self) -> None:
        assert not self.ended
        self.ended = True

    def closed(self, reason: CloseReason) -> None:
        self.reasons.append(reason)


class Timer:
    """A deadline that rings when the test says so."""

    def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
        self.seconds, self.ring, self.cancelled = seconds, ring, False

    def cancel(self) -> None:
        self.cancelled = True


class Peer:
    """The client's side, and the connection it talks to."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        handlers: dict[str, Any] | None = None,
        settings: dict[int, int] | None = None,
        greet: bool = True,
    ) -> None:
        self.calls: list[Recorder] = []
        self.stats = TransportStats()
        self.timers: list[Timer] = []
        self.now = 0.0
        self.wakes = 0
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.next_id = 1
        self.connection = Connection(
            handlers if handlers is not None else {"/t/Echo": self._echo, "/t/Sink": self._sink},
            limits=limits or Limits(),
            stats=self.stats,
            clock=lambda: self.now,
            call_later=self._call_later,
            wake=self._wake,
            peer="10.0.0.9:1234",
        )
        if greet:
            self.send(f.PREFACE + f.settings(settings or {}))
            self.take()

    def _call_later(self, seconds: float, ring: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, ring))
        return self.timers[-1]

    def _wake(self) -> None:
        self.wakes += 1

    def _echo(self, call: Call) -> Recorder:
        return self._record(Recorder(call, lambda call, message: call.send(message)))

    def _sink(self, call: Call) -> Recorder:
        return self._record(Recorder(call))

    def _record(self, recorder: Recorder) -> Recorder:
        self.calls.append(recorder)
        return recorder

    def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self.connection.receive(data)

    def frame(self, kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> None:
        """One frame, right or wrong."""
        self.send(f.frame_header(len(payload), kind, flags, stream_id) + payload)

    def block(self, **changes: str | None) -> bytes:
        """A header block; `_path="/x"` changes `:path`, `te=None` leaves `te` out, others are appended."""
        headers = dict(REQUEST)
        for name, value in changes.items():
            key = name.replace("_", ":", 1) if name.startswith("_") else name.replace("_", "-")
            if value is None:
                del headers[key]
            else:
                headers[key] = value
        return self.encoder.encode(list(headers.items()))

    def open(self, path: str = "/t/Echo", *, end: bool = False, **changes: str | None) -> int:
        """HEADERS of a new call; returns its stream id."""
        stream_id, self.next_id = self.next_id, self.next_id + 2
        self.frame(
            f.HEADERS, f.END_HEADERS | (f.END_STREAM if end else 0), stream_id, self.block(_path=path, **changes)
        )
        return stream_id

    def message(self, stream_id: int, message: bytes, *, end: bool = False) -> None:
        """A message in one DATA frame."""
        self.frame(f.DATA, f.END_STREAM if end else 0, stream_id, struct.pack("!BI", 0, len(message)) + message)

    def take(self) -> list[Frame]:
        """What the connection has to say."""
        data = self.connection.take()
        found = []
        while data:
            word, flags, stream_id = struct.unpack_from("!IBI", data)
            length = word >> 8
            assert length <= f.DEFAULT_FRAME_SIZE
            assert len(data) >= 9 + length
            found.append(Frame(NAMES[word & 255], flags, stream_id, data[9 : 9 + length]))
            data = data[9 + length :]
        return found

    def headers(self, frame: Frame) -> dict[str, str]:
        """The fields of a HEADERS frame."""
        return dict(self.decoder.decode(frame.payload))


@pytest.fixture
def make_peer() -> type[Peer]:
    return Peer


@pytest.fixture
def peer() -> Peer:
    return Peer()


def client_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate that a client may show, and its key, as PEM."""
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "gateway")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    return (
        builder.sign(key, hashes.SHA256()).public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none),
    )


@pytest.fixture
def make_client_pair() -> Callable[[], tuple[bytes, bytes]]:
    return client_certificate
