"""What all exchanges of a service share: settings, and the few things of the outside that they call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from epp.api.errors import RequestError
from epp.api.plugin import Clock
from epp.director.flight import Flight, RequestHead
from epp.extproc.header_wire import KnownHeaders


@dataclass(frozen=True, slots=True)
class ExchangeSettings:
    """`max_body_bytes`: larger request bodies get 413 (`--max-request-body-bytes`).

    `bypass_response`: close the stream right after the pick. The cheapest way to pick where the gateway sends every
    token, and answers survive a restart of the picker; but the picker then hears nothing of the answer: no usage, no
    latency, no served endpoint, no model-name restore, and the request counts as ended with the pick.

    `answer_bytes`: most bytes of a JSON answer kept to read its usage. `line_bytes`: most bytes of one line of a
    stream kept when it is split over chunks. `queued_messages`: most messages of one request that may wait for its
    decision; no gateway sends more than a few.
    """

    max_body_bytes: int = 64 * 1024 * 1024
    bypass_response: bool = False
    answer_bytes: int = 256 * 1024
    line_bytes: int = 64 * 1024
    queued_messages: int = 16 * 1024


class Decider(Protocol):
    """Who decides: the director."""

    def decide(self, head: RequestHead, body: bytes) -> Flight | Awaitable[Flight]:
        """Pick for a request with a body. Raises a `RequestError`, now or when awaited."""

    def decide_without_body(self, head: RequestHead) -> Flight | Awaitable[Flight]:
        """Pick for a request whose body is empty, or not shown to us."""

    def refused(self, head: RequestHead | None, error: RequestError) -> None:
        """The exchange refused a request by itself."""


class ExchangeObserver(Protocol):
    """Who counts."""

    def failed(self, error: BaseException) -> None:
        """Something that must not fail did; the request was answered, or its response passed on unseen."""

    def violated(self, problem: str) -> None:
        """The gateway broke the protocol; the stream ends with a gRPC error."""


class StreamObserver(Protocol):
    """Who counts streams, where that is wanted (`--enable-grpc-stream-metrics`)."""

    def opened(self) -> None:
        """A stream began."""

    def closed(self, code: str, seconds: float) -> None:
        """It ended after so long, with this gRPC status (`OK`, `Canceled`, ...); once for each `opened`."""


class NoObserver:
    """Counts nothing."""

    def failed(self, error: BaseException) -> None:
        pass

    def violated(self, problem: str) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ExchangeContext:
    """`clock` in seconds; `make_id` gives a request id to a request that has none."""

    director: Decider
    clock: Clock
    make_id: Callable[[], str]
    settings: ExchangeSettings = ExchangeSettings()
    observer: ExchangeObserver = field(default_factory=NoObserver)
    streams: StreamObserver | None = None
    plain_decisions: dict[str, bytes] = field(default_factory=dict)
    """Finished replies per destination, for the usual decision that changes nothing else. Bounded by its user."""
    known_headers: KnownHeaders = field(default_factory=KnownHeaders)
