"""A picker that always answers the same, on our own transport: what is left when nothing is decided.

    python -m benchmarks.baseline.constant 127.0.0.1:8000 127.0.0.1:8001

It names the given endpoints in turn, reads no JSON, counts nothing and collects nothing. Plaintext. Prints its port.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator

import uvloop

from epp.demo.ports import free_ports
from epp.extproc import replies
from epp.extproc.codec import decode
from epp.extproc.header_wire import KnownHeaders
from epp.extproc.metadata import decision_metadata
from epp.extproc.service import METHOD, Call
from epp.extproc.wire import REQUEST_BODY, RESPONSE_HEADERS, RESPONSE_TRAILERS, body_span, streamed_body
from epp.transport.health import HealthState, health_handlers
from epp.transport.server import Server

_DESTINATION = "x-gateway-destination-endpoint"


class ConstantStream:
    """One request: the body is echoed behind the next endpoint's name."""

    def __init__(self, call: Call, decisions: Iterator[bytes], known: KnownHeaders) -> None:
        self._call = call
        self._known = known
        self._decisions = decisions
        self._body: list[bytes] = []
        self._decided = False

    def receive(self, message: bytes) -> None:
        """One message of the gateway."""
        if self._decided:
            kind = decode(message, self._known).kind
            if kind == RESPONSE_HEADERS:
                self._call.send(replies.PLAIN_RESPONSE_HEADERS)
            elif kind == RESPONSE_TRAILERS:
                self._call.send(replies.PLAIN_RESPONSE_TRAILERS)
            return
        span = body_span(message)
        if span is None:
            return
        _, start, stop, _, end_of_stream = span
        self._body.append(message[start:stop])
        if end_of_stream:
            self._decided = True
            self._call.send(next(self._decisions))
            for piece in streamed_body(REQUEST_BODY, b"".join(self._body), True):
                self._call.send(piece)

    def half_closed(self) -> None:
        """The answer has ended."""
        self._call.finish()

    def closed(self, reason: object) -> None:
        """Nothing was held."""


async def serve(endpoints: list[str]) -> None:
    """Until the process is stopped."""
    told = [
        replies.decision_in_headers({_DESTINATION: endpoint}, (), None) + decision_metadata(endpoint, None)
        for endpoint in endpoints
    ]
    decisions = itertools.cycle(told)
    known = KnownHeaders()
    state = HealthState()
    state.update(synced=True)
    handlers = {METHOD: lambda call: ConstantStream(call, decisions, known), **health_handlers(state)}
    (port,) = free_ports(1)
    server = Server(handlers)
    await server.start("127.0.0.1", port)
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1:]))
