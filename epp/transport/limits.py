"""What one peer may ask of us, and what is counted when it asks for more."""

from __future__ import annotations

from dataclasses import dataclass, field

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per connection, unless it says otherwise. Sizes in bytes. ValueError when they contradict each other.

    `concurrent_streams`: every HTTP request in flight holds one for its whole life, minutes for an LLM answer, so the
    bound is wide. `stream_window` and `connection_window`: what the peer may send before it hears from us; credit, not
    memory, because a message is handed on as soon as it is complete. `frame_size`: largest frame taken.

    `message`: one gRPC message, decompressed; above it the call ends with RESOURCE_EXHAUSTED. `unread`: incomplete
    messages of a connection; `buffered_server`: incomplete messages and replies that wait, over all connections; the
    call that goes beyond either ends with RESOURCE_EXHAUSTED.

    `unsent_stream`: replies that wait for the peer's window; above it the stream gets no more credit, so that the peer
    must take before it may send. `unsent_connection`: the same for all streams together. `burst`: bytes of waiting
    replies written in one go, so that small replies get between. `stalled_seconds`: a peer that takes nothing from a
    full socket for that long is disconnected.

    `header_list`, `headers`: size (RFC 9113 section 6.5.2) and number of request headers; more is answered with 431.
    `header_block`: a compressed block, CONTINUATION included; more ends the connection.

    `nuisance`, `nuisance_per_second`: an allowance for frames that carry no work, in points (`epp.transport.nuisance`);
    a peer that overdraws it is sent away with ENHANCE_YOUR_CALM. `connections`: over the whole server.
    `handshake_seconds`: until the HTTP/2 preface has arrived, TLS included.
    """

    concurrent_streams: int = 65_536
    stream_window: int = 1 * MIB
    connection_window: int = 64 * MIB
    frame_size: int = 16 * KIB
    message: int = 80 * MIB
    unread: int = 512 * MIB
    buffered_server: int = 2 * GIB
    unsent_stream: int = 1 * MIB
    unsent_connection: int = 64 * MIB
    burst: int = 256 * KIB
    stalled_seconds: float = 60.0
    header_list: int = 64 * KIB
    headers: int = 200
    header_block: int = 128 * KIB
    nuisance: int = 200_000
    nuisance_per_second: int = 20_000
    connections: int = 10_000
    handshake_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 16 * KIB <= self.frame_size < 16 * MIB:
            raise ValueError(f"frame_size {self.frame_size}: HTTP/2 wants 16384 to 16777215")
        for name in ("stream_window", "connection_window"):
            if not 65_535 <= getattr(self, name) < 2 * GIB:
                raise ValueError(f"{name} {getattr(self, name)}: wanted 65535 to 2147483647")


COUNTED = (
    "buffered_server",
    "concurrent_streams",
    "connections",
    "handshake_seconds",
    "header_block",
    "message",
    "nuisance",
    "stalled_seconds",
    "unread",
)
"""The limits whose being reached ends something, and is counted under their names."""


@dataclass(slots=True)
class TransportStats:
    """What is open now, and counters over the life of a server. `buffered`: bytes, see `Limits.buffered_server`."""

    connections: int = 0
    connections_total: int = 0
    streams: int = 0
    streams_total: int = 0
    buffered: int = 0
    protocol_errors: int = 0
    errors_by_code: dict[str, int] = field(default_factory=dict)
    limits_hit: dict[str, int] = field(default_factory=dict)
    tls_failures: int = 0
    handler_errors: int = 0

    def fault(self, code: str) -> None:
        """Count an error of a peer, by the RFC 9113 error code that we answered with."""
        self.protocol_errors += 1
        self.errors_by_code[code] = self.errors_by_code.get(code, 0) + 1

    def hit(self, limit: str) -> None:
        """Count a limit that was reached."""
        self.limits_hit[limit] = self.limits_hit.get(limit, 0) + 1
