"""Calls of the transport, tied to exchanges."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from typing import Any

import pytest

from epp.api import ResourceExhausted, TerminationCause
from epp.director.flight import Flight
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.service import METHOD, ProcessService, ProcessStream
from epp.extproc.settings import ExchangeContext, ExchangeSettings
from epp.transport.call import CloseReason
from tests.extproc_gateway import (
    Counts,
    ObedientDirector,
    RecordingFlight,
    kinds,
    request_body,
    request_headers,
    response_body,
    response_headers,
)


class RecordingCall:
    """A call that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[bytes | tuple[int, str]] = []
        self.aborted: int | None = None

    def send(self, message: bytes) -> None:
        self.told.append(message)

    def finish(self, code: int = 0, message: str = "") -> None:
        self.told.append((code, message))

    @property
    def kinds(self) -> list[Any]:
        return [t if isinstance(t, tuple) else kinds([pb.ProcessingResponse.FromString(t)])[0] for t in self.told]


class Gate:
    """A director whose decisions wait until they are let through."""

    def __init__(self) -> None:
        self.director = ObedientDirector(answer=lambda *_: self._decide())
        self.open = asyncio.Event()
        self.error: Exception | None = None
        self.cancelled = 0

    def _decide(self) -> Awaitable[Flight]:
        return self._wait()

    async def _wait(self) -> RecordingFlight:
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.director.take_off()


class Streams:
    """Keeps how each stream ended."""

    def __init__(self) -> None:
        self.open = 0
        self.ends: list[tuple[str, float]] = []

    def opened(self) -> None:
        self.open += 1

    def closed(self, code: str, seconds: float) -> None:
        self.open -= 1
        self.ends.append((code, seconds))


def begin(director: ObedientDirector, **settings: Any) -> tuple[ProcessService, RecordingCall, ProcessStream, Streams]:
    streams = Streams()
    times = itertools.count(10.0, 5.0)
    context = ExchangeContext(
        director, lambda: next(times), lambda: "id", ExchangeSettings(**settings), observer=Counts(), streams=streams
    )
    service = ProcessService(context)
    call = RecordingCall()
    return service, call, service(call), streams


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_call_from_its_first_message_to_its_end() -> None:
    director = ObedientDirector()
    service, call, stream, streams = begin(director)
    assert (service.open_streams, streams.open) == (1, 1)
    for message in (
        request_headers(),
        request_body(b"{}", True),
        response_headers(),
        response_body(b"a"),
        response_body(b"b", True),
    ):
        stream.receive(message)
    stream.half_closed()
    assert call.kinds == [
        "request_headers",
        "request_body",
        "response_headers",
        "response_body",
        "response_body",
        (0, ""),
    ]
    stream.closed(CloseReason.FINISHED)
    assert (service.open_streams, streams.open) == (0, 0)
    assert [code for code, _ in streams.ends] == ["OK"]
    assert director.flight.ends == [TerminationCause.NATURAL]
    assert METHOD == "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


def test_nobody_has_to_count_streams() -> None:
    service = ProcessService(ExchangeContext(ObedientDirector(), lambda: 0.0, lambda: "id"))
    stream = service(RecordingCall())
    stream.receive(request_headers(end_of_stream=True))
    assert service.open_streams == 1
    stream.closed(CloseReason.RESET)
    assert service.open_streams == 0


def test_the_bypass_finishes_right_behind_the_reply() -> None:
    _, call, stream, _ = begin(ObedientDirector(), bypass_response=True)
    stream.receive(request_headers())
    stream.receive(request_body(b"{}", True))
    assert call.kinds == ["request_headers", "request_body", (0, "")]


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (CloseReason.RESET, TerminationCause.CLIENT_DISCONNECT),
        (CloseReason.DISCONNECTED, TerminationCause.ERROR),
        (CloseReason.ABORTED, TerminationCause.ERROR),
    ],
)
def test_a_call_that_ends_early(reason: CloseReason, cause: TerminationCause) -> None:
    director = ObedientDirector()
    _, call, stream, _ = begin(director)
    stream.receive(request_headers(end_of_stream=True))
    stream.closed(reason)
    assert director.flight.ends == [cause]
    assert call.kinds == ["request_headers"]


@pytest.mark.parametrize(
    ("reason", "aborted", "code"),
    [
        (CloseReason.RESET, None, "Canceled"),
        (CloseReason.DISCONNECTED, None, "Canceled"),
        (CloseReason.ABORTED, 4, "DeadlineExceeded"),
        (CloseReason.ABORTED, None, "Internal"),
    ],
)
def test_the_status_of_a_call_that_ends_early(reason: CloseReason, aborted: int | None, code: str) -> None:
    _, call, stream, streams = begin(ObedientDirector())
    stream.receive(request_headers(end_of_stream=True))
    call.aborted = aborted
    stream.closed(reason)
    assert [name for name, _ in streams.ends] == [code]
    assert streams.ends[0][1] >= 5.0


def test_a_reset_behind_the_end_of_the_answer_cancels_nothing() -> None:
    _, _, stream, streams = begin(ObedientDirector())
    for message in (request_headers(end_of_stream=True), response_headers(), response_body(b"b", True)):
        stream.receive(message)
    stream.closed(CloseReason.RESET)
    assert [code for code, _ in streams.ends] == ["OK"]


def test_a_status_that_is_on_its_way_when_the_reset_comes_is_the_status() -> None:
    _, call, stream, streams = begin(ObedientDirector())
    stream.receive(request_body(b"{}", True))
    assert call.kinds[0][0] == 3
    stream.closed(CloseReason.RESET)
    assert [code for code, _ in streams.ends] == ["InvalidArgument"]


async def test_a_decision_that_waits_is_awaited() -> None:
    gate = Gate()
    _, call, stream, _ = begin(gate.director)
    stream.receive(request_headers())
    stream.receive(request_body(b"{}", True))
    await settle()
    assert call.told == []
    gate.open.set()
    await settle()
    assert call.kinds == ["request_headers", "request_body"]
    stream.receive(response_headers())
    assert call.kinds[2:] == ["response_headers"]


async def test_a_decision_that_waits_may_be_a_refusal() -> None:
    gate = Gate()
    gate.error = ResourceExhausted("queue full")
    _, call, stream, _ = begin(gate.director)
    stream.receive(request_headers(end_of_stream=True))
    gate.open.set()
    await settle()
    assert call.kinds == ["immediate_response", (0, "")]


async def test_nobody_waits_for_a_client_that_went_away() -> None:
    gate = Gate()
    service, call, stream, _ = begin(gate.director)
    stream.receive(request_headers(end_of_stream=True))
    await settle()
    stream.half_closed()
    assert call.kinds == [(14, "the client went away before its request was answered")]
    stream.closed(CloseReason.FINISHED)
    await settle()
    assert gate.cancelled == 1
    assert service.open_streams == 0
    assert len(call.told) == 1


async def test_a_decision_made_in_the_moment_of_the_reset_ends_its_flight() -> None:
    gate = Gate()
    _, call, stream, _ = begin(gate.director)
    stream.receive(request_headers(end_of_stream=True))
    await settle()
    gate.open.set()
    await asyncio.sleep(0)  # the decision is made, and its callback not yet run
    assert len(gate.director.flights) == 1
    stream.closed(CloseReason.RESET)
    await settle()
    assert gate.director.flight.ends == [TerminationCause.CLIENT_DISCONNECT]
    assert call.told == []


async def test_a_decision_cancelled_from_outside_is_a_503() -> None:
    future: asyncio.Future[Flight] = asyncio.get_running_loop().create_future()
    _, call, stream, _ = begin(ObedientDirector(answer=lambda *_: future))
    stream.receive(request_headers(end_of_stream=True))
    future.cancel()
    await settle()
    assert call.kinds == ["immediate_response", (0, "")]
    reply = call.told[0]
    assert isinstance(reply, bytes)
    answer = pb.ProcessingResponse.FromString(reply).immediate_response
    assert answer.status.code == 503
    assert any(option.header.raw_value == b"rejected-shutting-down" for option in answer.headers.set_headers)


async def test_what_the_gateway_answers_itself_cancels_the_decision() -> None:
    gate = Gate()
    _, call, stream, _ = begin(gate.director)
    stream.receive(request_headers(end_of_stream=True))
    await settle()
    stream.receive(response_headers())
    await settle()
    assert gate.cancelled == 1
    assert call.kinds == ["response_headers"]
