"""Damaged conversations: whatever a gateway sends, an exchange neither raises nor grows, and its flights end once.

`PYTHONPATH=. python tests/fuzz/test_fuzz_exchange.py [atheris options]` runs it under atheris for as long as wanted.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Iterator

from epp.director.flight import Decision
from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.settings import ExchangeSettings
from tests.extproc_gateway import (
    Conversation,
    ObedientDirector,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)

_SECONDS = 5.0
_CONTEXT = {
    "envoy.lb": {"x-gateway-destination-endpoint-served": "10.0.0.1:8000"},
    "envoy.lb.subset_hint": {"x-gateway-destination-endpoint-subset": ["10.0.0.1:8000"]},
}
_WHOLE = [
    request_headers(context=_CONTEXT),
    request_body(b'{"model":"m"}', context=_CONTEXT),
    request_body(b"", True),
    request_trailers(),
    response_headers(context=_CONTEXT),
    response_body(b'data: {"model":"m","choices":[]}\n\n', context=_CONTEXT),
    response_body(b'data: {"usage":{"total_tokens":3}}\n\n' * 9, context=_CONTEXT),
    response_body(b"", True),
    response_trailers(),
]
_DECISIONS = [
    Decision("10.0.0.1:8000"),
    Decision("10.0.0.1:8000", body=b"changed", restore_model=("m", "asked")),
]


def one_input(data: bytes) -> None:
    """The input is a sequence of messages, each behind a 16-bit length; the first byte chooses the decision."""
    if not data:
        return
    talk = Conversation(ObedientDirector(_DECISIONS[data[0] & 1]), ExchangeSettings(max_body_bytes=4096))
    for message in _messages(data):
        for reply in talk.exchange.feed(message):
            pb.ProcessingResponse.FromString(reply)
            assert len(reply) < 2 * len(data) + 600
    if data[0] & 2:
        talk.half_close()
    talk.exchange.close(lost=bool(data[0] & 4))
    assert talk.exchange.pending is None
    assert all(len(flight.ends) == 1 for flight in talk.director.flights)
    assert talk.observer.failures == []


def _messages(data: bytes) -> Iterator[bytes]:
    at = 1
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def _sequence(rng: random.Random) -> bytes:
    messages = [_damaged(rng, message) if rng.random() < 0.3 else message for message in _WHOLE]
    for _ in range(rng.randint(0, 3)):
        other = rng.randrange(len(messages))
        match rng.randint(0, 2):
            case 0:
                messages.insert(rng.randrange(len(messages)), messages[other])
            case 1:
                del messages[other]
            case _:
                rng.shuffle(messages)
    parts = [bytes((rng.randrange(256),))]
    for message in messages:
        parts += (len(message).to_bytes(2, "big"), message)
    return b"".join(parts)


def _damaged(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(data))
        match rng.randint(0, 3):
            case 0:
                del data[at : at + rng.randint(1, 9)]
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randint(0, 7)
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 4))
            case _:
                data[at:at] = data[max(0, at - rng.randint(1, 20)) : at]
    return bytes(data)


def test_damaged_conversations() -> None:
    rng = random.Random(20)
    until = time.monotonic() + _SECONDS
    rounds = 0
    logger = logging.getLogger("epp.extproc")
    logger.setLevel(logging.CRITICAL)
    try:
        while time.monotonic() < until:
            for _ in range(50):
                data = _sequence(rng)
                try:
                    one_input(data)
                except BaseException:
                    print("input:", data.hex())
                    raise
            rounds += 50
    finally:
        logger.setLevel(logging.NOTSET)
    assert rounds > 0


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
