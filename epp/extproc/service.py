"""`ExternalProcessor.Process` for the transport: one `Exchange` per call.

The only place in this package that starts a task, and only for a decision that has to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from enum import Enum
from typing import Final, Protocol

from epp.api.errors import ServiceUnavailable
from epp.director.flight import Flight
from epp.extproc.exchange import Exchange
from epp.extproc.settings import ExchangeContext
from epp.extproc.stream_status import stream_status

METHOD: Final = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

_LOST: Final = frozenset({"disconnected", "aborted"})


class Call(Protocol):
    """What is needed of a call; `epp.transport.call.Call` is one."""

    aborted: int | None

    def send(self, message: bytes) -> None:
        """Queue one message."""

    def finish(self, code: int = 0, message: str = "") -> None:
        """End the call after everything queued."""


class ProcessService:
    """The handler of `METHOD`: called with a call, it returns the stream object that the transport talks to."""

    def __init__(self, context: ExchangeContext) -> None:
        self.context = context
        self.open_streams = 0

    def __call__(self, call: Call) -> ProcessStream:
        self.open_streams += 1
        return ProcessStream(self, call)


class ProcessStream:
    """One call. Replies of a message are sent before the next one is looked at."""

    __slots__ = ("_awaited", "_call", "_exchange", "_finished", "_opened_at", "_service", "_task")

    def __init__(self, service: ProcessService, call: Call) -> None:
        self._service = service
        self._call = call
        self._exchange = Exchange(service.context)
        self._awaited: Awaitable[Flight] | None = None
        self._task: asyncio.Future[Flight] | None = None
        self._finished = False
        self._opened_at = 0.0
        streams = service.context.streams
        if streams is not None:
            self._opened_at = service.context.clock()
            streams.opened()

    def receive(self, message: bytes) -> None:
        """One message of the gateway."""
        exchange = self._exchange
        for reply in exchange.feed(message):
            self._call.send(reply)
        if exchange.finished is not None or exchange.pending is not self._awaited:
            self._settle()

    def half_closed(self) -> None:
        """The gateway will send no more."""
        self._send(self._exchange.half_close())

    def closed(self, reason: Enum) -> None:
        """The call is over (`epp.transport.call.CloseReason`)."""
        self._finished = True
        service = self._service
        service.open_streams -= 1
        streams = service.context.streams
        if streams is not None:
            code = stream_status(self._exchange, reason, self._call.aborted)
            streams.closed(code, service.context.clock() - self._opened_at)
        exchange = self._exchange
        exchange.close(lost=exchange.finished is None and reason.value in _LOST)
        if self._awaited is not None:
            self._settle()

    def _send(self, messages: list[bytes]) -> None:
        for reply in messages:
            self._call.send(reply)
        self._settle()

    def _settle(self) -> None:
        """Await what the exchange waits for, let go of what it no longer waits for, end the call when it is done."""
        exchange = self._exchange
        if exchange.pending is not self._awaited:
            task, self._task = self._task, None
            if task is not None:
                task.cancel()
            self._awaited = exchange.pending
            if self._awaited is not None:
                self._task = asyncio.ensure_future(self._awaited)
                self._task.add_done_callback(self._decided)
        if exchange.finished is not None and not self._finished:
            self._finished = True
            self._call.finish(*exchange.finished)

    def _decided(self, task: asyncio.Future[Flight]) -> None:
        if task is self._task:
            self._task = self._awaited = None
        if task.cancelled():  # by us, and then nobody listens; or by whoever stops the picker
            error: BaseException | None = ServiceUnavailable(
                "the picker is shutting down", reason="rejected-shutting-down"
            )
        else:
            error = task.exception()
        self._send(self._exchange.resolve(task.result() if error is None else None, error))
