"""What one peer may ask of us, and what is counted when it asks for more."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per connection, unless it says otherwise. Sizes in bytes.

    `concurrent_streams`: every HTTP request in flight holds one for its whole life, minutes for an LLM answer, so the
    bound is wide. `stream_window` is what the peer may send on a stream before we read it; `connection_window` the
    same over all streams: credit, not memory. `message`: one gRPC message, decompressed. `unread`: incomplete
    messages over all streams; more ends the connection. `unsent_stream`: replies the peer does not take; above it the
    stream gets no more credit. `unsent_connection`: above it nothing more is read until the peer has taken some.
    `unsent_ceiling`: above it the connection is given up. `header_list`, `headers`: size and number of request
    headers (Envoy's own metadata are a handful), `header_block` the same before decompression. `idle_frames`: frames
    without use (PING, SETTINGS, PRIORITY, empty DATA, resets of streams that never sent a message) allowed in 10
    seconds; a flood ends with ENHANCE_YOUR_CALM. `handshake_seconds`: TLS and HTTP/2 preface must be through by then.
    A reset of a stream that was served is never counted: Envoy resets every finished stream.
    """

    concurrent_streams: int = 65_536
    stream_window: int = 1 << 20
    connection_window: int = 64 << 20
    frame_size: int = 1 << 18
    message: int = 80 << 20
    unread: int = 512 << 20
    unsent_stream: int = 1 << 20
    unsent_connection: int = 8 << 20
    unsent_ceiling: int = 1 << 30
    header_list: int = 64 << 10
    headers: int = 200
    header_block: int = 128 << 10
    idle_frames: int = 100_000
    handshake_seconds: float = 10.0


@dataclass(slots=True)
class TransportStats:
    """Counters over the life of a server, and what is open now."""

    connections: int = 0
    connections_total: int = 0
    streams: int = 0
    streams_total: int = 0
    protocol_errors: int = 0
    limits_hit: dict[str, int] = field(default_factory=dict)
    tls_failures: int = 0
    handler_errors: int = 0

    def hit(self, limit: str) -> None:
        """Count a limit that was reached."""
        self.limits_hit[limit] = self.limits_hit.get(limit, 0) + 1
