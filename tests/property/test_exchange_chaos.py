"""Any sequence of messages, in any state: nothing raises, nothing hangs, and every flight ends exactly once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epp.api import ResourceExhausted
from epp.director.flight import Decision, Flight, RequestHead
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.settings import ExchangeSettings
from tests.extproc_gateway import (
    Conversation,
    ObedientDirector,
    RecordingFlight,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)

MODES = st.none() | st.tuples(st.integers(0, 6), st.integers(0, 6))
BODIES = st.sampled_from([b"", b"x", b'data: {"usage":{}}\n\n', b'{"model":"', b'm"}', b"y" * 400, b"z" * 70_000])
HEADERS = st.sampled_from(
    [
        {},
        {":path": "/v1/completions", "x-request-id": "r"},
        {":path": "/", "content-length": "99999999", "x-prefiller-host-port": "evil:1"},
    ]
)
ANSWERS = st.sampled_from(
    [
        {},
        {":status": "200", "content-type": "text/event-stream"},
        {":status": "500", "content-type": "application/json", "content-length": "9"},
    ]
)
LOG = logging.getLogger("epp.extproc")


class Chaos(RuleBasedStateMachine):
    @initialize(
        behaviour=st.sampled_from(["picks", "picks", "waits", "refuses", "breaks"]),
        decision=st.sampled_from(
            [
                Decision("10.0.0.1:8000"),
                Decision("10.0.0.1:8000", body=b"changed", restore_model=("m", "asked"), scores={"a": 1.0}),
                Decision("10.0.0.1:8000", skip_response=True),
                Decision("10.0.0.1:8000", set_headers={"a": None}),
            ]
        ),
        fail_on=st.sampled_from(["", "", "", "response_headers", "chunk", "stream_usage", "body_usage", "end"]),
    )
    def begin(self, behaviour: str, decision: Decision, fail_on: str) -> None:
        self.behaviour = behaviour
        self.flights: list[RecordingFlight] = []
        self.director = ObedientDirector(decision, self.answer, fail_on)
        self.talk = Conversation(self.director, ExchangeSettings(max_body_bytes=100_000, queued_messages=3))
        self.half_closed = False
        self.began = False
        self.replies_at_end = -1
        LOG.setLevel(logging.CRITICAL)  # thousands of tracebacks say nothing

    def answer(self, head: RequestHead, body: bytes | None) -> Any:
        if self.behaviour == "waits":
            loop = asyncio.new_event_loop()
            future: asyncio.Future[Flight] = loop.create_future()
            loop.close()
            return future
        if self.behaviour == "refuses":
            raise ResourceExhausted("full")
        if self.behaviour == "breaks":
            raise RuntimeError("boom")
        return self.director.take_off()

    def tell(self, message: bytes) -> None:
        self.talk.say(message)

    @rule(headers=HEADERS, end=st.booleans(), modes=MODES)
    def request_headers(self, headers: dict[str, str], end: bool, modes: tuple[int, int] | None) -> None:
        self.began = self.began or self.talk.finished is None
        self.tell(request_headers(headers, end_of_stream=end, modes=modes))

    @rule(body=BODIES, end=st.booleans())
    def request_body(self, body: bytes, end: bool) -> None:
        self.tell(request_body(body, end))

    @rule()
    def request_trailers(self) -> None:
        self.tell(request_trailers())

    @rule(headers=ANSWERS, end=st.booleans())
    def response_headers(self, headers: dict[str, str], end: bool) -> None:
        self.tell(response_headers(headers, end))

    @rule(body=BODIES, end=st.sampled_from([False, False, True]))
    def response_body(self, body: bytes, end: bool) -> None:
        self.tell(response_body(body, end))

    @rule()
    def response_trailers(self) -> None:
        self.tell(response_trailers())

    @rule(message=st.one_of(st.binary(max_size=12), st.sampled_from([b"", b"\x62\x00"])))
    def garbage(self, message: bytes) -> None:
        self.tell(message)

    @rule(outcome=st.sampled_from(["picked", "refused", "broken"]))
    def resolve(self, outcome: str) -> None:
        if outcome == "picked":
            self.talk.resolve(self.director.take_off())
        else:
            self.talk.resolve(None, ResourceExhausted("full") if outcome == "refused" else RuntimeError("boom"))

    @precondition(lambda self: not self.half_closed)
    @rule()
    def half_close(self) -> None:
        self.half_closed = True
        self.talk.half_close()

    @rule(lost=st.booleans())
    def close(self, lost: bool) -> None:
        self.talk.exchange.close(lost=lost)

    @invariant()
    def nothing_is_said_behind_the_end(self) -> None:
        if self.talk.finished is not None:
            if self.replies_at_end < 0:
                self.replies_at_end = len(self.talk.replies)
            assert len(self.talk.replies) == self.replies_at_end
            assert self.talk.exchange.pending is None
            assert all(len(flight.ends) == 1 for flight in self.director.flights)

    @invariant()
    def a_request_is_never_closed_with_ok_before_it_is_answered(self) -> None:
        if self.talk.finished is not None and self.talk.finished[0] == 0 and self.began:
            assert self.talk.replies

    @invariant()
    def no_flight_ends_twice(self) -> None:
        assert all(len(flight.ends) <= 1 for flight in self.director.flights)

    @invariant()
    def an_empty_piece_that_ends_nothing_is_never_sent(self) -> None:
        for reply in self.talk.replies[-3:]:
            for part in (reply.request_body, reply.response_body):
                mutation = part.response.body_mutation
                if mutation.WhichOneof("mutation") == "streamed_response":
                    assert mutation.streamed_response.body or mutation.streamed_response.end_of_stream

    def teardown(self) -> None:
        LOG.setLevel(logging.NOTSET)
        self.talk.exchange.close()
        assert self.talk.exchange.pending is None
        assert all(len(flight.ends) == 1 for flight in self.director.flights)
        assert isinstance(self.talk.replies, list)
        assert all(isinstance(reply, pb.ProcessingResponse) for reply in self.talk.replies)


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=120, stateful_step_count=12, deadline=None)
