"""The response phase of one picked request: what is measured, which hooks run, and the one end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from epp.api.errors import RequestError
from epp.api.plugin import Clock, Parser
from epp.api.request import InferenceRequest, InferenceResponse, Payload, TerminationCause, Usage
from epp.director.flight import Decision
from epp.director.recording import Recorder
from epp.scheduling.guard import Guarded
from epp.telemetry.tracing import Span

_UNDECIDED = Decision(destination="")


@dataclass(frozen=True, slots=True)
class ResponseHooks:
    """The hooks that some plugin overrides, by moment."""

    headers: Sequence[Guarded]
    first_chunk: Sequence[Guarded]
    end: Sequence[Guarded]
    parsing: Mapping[Parser[Any], Callable[[float], None]]
    """Per parser, where the seconds go that it took to read the usage out of an answer."""


class RequestFlight:
    """Implements `epp.director.flight.Flight`. `end` releases everything exactly once."""

    __slots__ = (
        "_clock",
        "_ended",
        "_hooks",
        "_itl",
        "_itl_bounds",
        "_parser",
        "_processing",
        "_recorder",
        "_span",
        "decision",
        "request",
        "response",
    )

    def __init__(
        self,
        request: InferenceRequest,
        destination: str,
        parser: Parser[Any] | None,
        recorder: Recorder,
        hooks: ResponseHooks,
        clock: Clock,
    ) -> None:
        self.request = request
        self.response = InferenceResponse(served=destination)
        self.decision = _UNDECIDED
        self._parser = parser
        self._recorder = recorder
        self._hooks = hooks
        self._clock = clock
        self._ended = False
        self._itl: list[int] | None = None
        self._itl_bounds = recorder.itl_bounds
        self._span: Span | None = None
        self._processing = 0.0
        recorder.began(request, clock())

    def response_headers(self, status: int, headers: Mapping[str, str], served: str) -> None:
        """The server answered. `served` "" keeps the picked endpoint."""
        began = self._clock()
        response = self.response
        response.status = status
        response.headers = headers
        response.streaming = "text/event-stream" in headers.get("content-type", "")
        if served:
            response.served = served
        if self._hooks.headers:
            self._run(self._hooks.headers)
        self._processing = self._clock() - began

    def chunk(self, now: float, size: int) -> None:
        """A non-empty body chunk passed by. The hot path: one call per token."""
        response = self.response
        last = response.last_chunk_at
        response.last_chunk_at = now
        response.body_size += size
        if last is None:
            response.first_chunk_at = now
            if self._hooks.first_chunk:
                self._run(self._hooks.first_chunk)
        elif response.streaming:
            counts = self._itl
            if counts is None:
                counts = self._itl = [0] * (len(self._itl_bounds) + 1)
            counts[bisect_left(self._itl_bounds, now - last)] += 1

    def stream_usage(self, event: bytes) -> None:
        """An SSE data event that mentions usage."""
        if self._parser is not None:
            self._usage(self._parser, self._parser.stream_usage, event)

    def body_usage(self, body: bytes) -> None:
        """A complete JSON answer, or its tail."""
        if self._parser is not None:
            self._usage(self._parser, self._parser.usage, body)

    def _usage(self, parser: Parser[Any], read: Callable[[Payload, bytes], Usage | None], told: bytes) -> None:
        began = self._clock()
        try:
            usage = read(self.request.payload, told)
            if usage is not None:
                self.response.usage.merge(usage)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._recorder.unexpected(error)
        finally:
            self._hooks.parsing[parser](self._clock() - began)

    def end(self, cause: TerminationCause) -> None:
        """Release everything; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        began = self._clock()
        self.response.cause = cause
        self._run(self._hooks.end)
        now = self._clock()
        self._recorder.ended(self.request, self.response, self._itl, now)
        if self.response.status:
            self._recorder.processed(self._processing + now - began)
        if self._span is not None:
            self._span.end()

    def trace(self, span: Span) -> None:
        """End `span` with the flight, and send its context along to the model server."""
        self._span = span
        self.request.span = None
        carried = span.headers()
        if carried:
            self.decision = msgspec.structs.replace(self.decision, set_headers={**self.decision.set_headers, **carried})

    def abandon(self) -> None:
        """The request was refused after it had been picked: the hooks that took something give it back."""
        self.end(TerminationCause.ERROR)

    def _run(self, hooks: Sequence[Guarded]) -> None:
        for guarded in hooks:
            try:
                guarded.run(self.request, self.response)
            except RequestError as error:
                guarded.failed(error)  # too late to refuse: the server is already answering
