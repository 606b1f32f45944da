"""A request that has been picked: what the gateway is told, and what happens until the answer has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from epp.api.request import InferenceRequest, InferenceResponse, TerminationCause


class RequestHead(msgspec.Struct):
    """What is known of a request before its body: headers (lower-case names, one value each) and metadata.

    `subset`: endpoints the gateway allows (`ip` or `ip:port`); None: no hint; empty: none is allowed.
    `request_id` is taken from `x-request-id` or made; `received_at` is in seconds of the injected clock.
    """

    headers: dict[str, str]
    path: str
    method: str
    request_id: str
    received_at: float
    subset: tuple[str, ...] | None = None


class Decision(msgspec.Struct, frozen=True):
    """What the gateway is told.

    `destination` is `ip:port` (or a comma list when a picker was asked for several). `set_headers` go on the request
    towards the server, `remove_headers` are taken off it. `body` None: forward the original bytes. `restore_model`:
    (name in the response, name the client asked for), when they differ. `scores`: `ip:port` -> weighted sum, only
    when they are to be emitted. `skip_response`: close the stream right after the pick.
    """

    destination: str
    set_headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    remove_headers: tuple[str, ...] = ()
    body: bytes | None = None
    restore_model: tuple[str, str] | None = None
    scores: Mapping[str, float] | None = None
    skip_response: bool = False


class Flight(Protocol):
    """The response phase of one picked request. `end` is called exactly once, whatever happens."""

    request: InferenceRequest
    response: InferenceResponse
    decision: Decision

    def response_headers(self, status: int, headers: Mapping[str, str], served: str) -> None:
        """The server answered; afterwards `response.set_headers` holds what plugins want on the response."""

    def chunk(self, now: float, size: int) -> None:
        """A non-empty response body chunk passed by: first-chunk hooks, inter-token latency, size."""

    def stream_usage(self, event: bytes) -> None:
        """An SSE data event that may carry usage (the JSON without `data: `)."""

    def body_usage(self, body: bytes) -> None:
        """A complete JSON answer, or the tail of a long one."""

    def end(self, cause: TerminationCause) -> None:
        """Release everything. Afterwards `response.metadata` holds what plugins report; a second call does nothing."""


class Refusals(Protocol):
    """Who hears of requests refused before the director saw them (too large, malformed)."""

    def refused(self, head: RequestHead | None, error: Any) -> None:
        """Count it."""
