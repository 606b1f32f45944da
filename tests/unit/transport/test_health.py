"""The health service: messages against protobuf's own runtime, meaning of the names, Check, List and Watch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc import aio

from epp.transport.call import CloseReason
from epp.transport.grpcio_server import GrpcioServer
from epp.transport.health import (
    CHECK,
    EXT_PROC,
    LIST,
    LIVENESS,
    POOL,
    READINESS,
    WATCH,
    HealthState,
    health_handlers,
)
from epp.transport.health_messages import (
    ServingStatus,
    decode_request,
    encode_list,
    encode_request,
    encode_response,
)

SERVING, NOT_SERVING, UNKNOWN = ServingStatus.SERVING, ServingStatus.NOT_SERVING, ServingStatus.SERVICE_UNKNOWN


def _reference() -> dict[str, Any]:
    """The messages as the protobuf runtime builds them from a descriptor: an oracle that shares no code with ours."""
    file = descriptor_pb2.FileDescriptorProto(name="health_reference.proto", package="ref", syntax="proto3")
    string, enum, message = 9, 14, 11
    request = file.message_type.add(name="Request")
    request.field.add(name="service", number=1, type=string, label=1)
    response = file.message_type.add(name="Response")
    response.field.add(name="status", number=1, type=enum, label=1, type_name=".ref.Status")
    status = file.enum_type.add(name="Status")
    for name, number in (("UNKNOWN", 0), ("SERVING", 1), ("NOT_SERVING", 2), ("SERVICE_UNKNOWN", 3)):
        status.value.add(name=name, number=number)
    listed = file.message_type.add(name="List")
    entry = listed.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=string, label=1)
    entry.field.add(name="value", number=2, type=message, label=1, type_name=".ref.Response")
    listed.field.add(name="statuses", number=1, type=message, label=3, type_name=".ref.List.StatusesEntry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ref.{n}"))
        for n in ("Request", "Response", "List")
    }


REF = _reference()


@pytest.mark.parametrize("service", ["", "liveness", EXT_PROC, "é" * 100, "x" * 20_000])
def test_requests(service: str) -> None:
    message = REF["Request"](service=service).SerializeToString()
    assert encode_request(service) == message
    assert decode_request(message) == service


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    varint, fixed64, fixed32, text = b"\x10\x96\x01", b"\x19" + bytes(8), b"\x25" + bytes(4), b"\x2a\x02hi"
    assert decode_request(varint + fixed64 + encode_request("liveness") + fixed32 + text) == "liveness"


@pytest.mark.parametrize(
    "damaged", [b"\x0a", b"\x0a\x05abc", b"\x0a\x02\xff\xfe", b"\x0b", b"\x80" * 12, b"\x19\x00", b"\x08\x80"]
)
def test_damaged_requests(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"byte|decode"):
        decode_request(damaged)


@pytest.mark.parametrize("status", list(ServingStatus))
def test_responses(status: ServingStatus) -> None:
    assert encode_response(status) == REF["Response"](status=int(status)).SerializeToString()


def test_lists() -> None:
    statuses = {"": SERVING, "liveness": NOT_SERVING, "x" * 200: UNKNOWN, "none": ServingStatus.UNKNOWN}
    parsed = REF["List"].FromString(encode_list(statuses))
    assert {name: value.status for name, value in parsed.statuses.items()} == {k: int(v) for k, v in statuses.items()}


def answers(state: HealthState) -> dict[str, ServingStatus]:
    return {name: state.status(name) for name in ("", LIVENESS, READINESS, POOL, EXT_PROC, "else")}


def test_without_leader_election() -> None:
    state = HealthState()
    not_yet = dict.fromkeys(("", READINESS, POOL, EXT_PROC, "else"), NOT_SERVING)
    assert answers(state) == {**not_yet, LIVENESS: SERVING}
    state.update(synced=True)
    assert set(answers(state).values()) == {SERVING}
    assert state.ready
    state.update(plugins_ready=False)
    assert answers(state) == {
        "": NOT_SERVING, READINESS: NOT_SERVING, EXT_PROC: NOT_SERVING,
        LIVENESS: SERVING, POOL: SERVING, "else": SERVING,
    }  # fmt: skip
    assert not state.ready
    state.update(plugins_ready=True, draining=True)
    assert answers(state) == {**not_yet, LIVENESS: SERVING}


def test_with_leader_election() -> None:
    state = HealthState(leader_election=True)
    state.update(synced=True)
    ready = ("", READINESS, EXT_PROC)
    unknown = {POOL: UNKNOWN, "else": UNKNOWN, LIVENESS: SERVING}
    assert answers(state) == {**dict.fromkeys(ready, NOT_SERVING), **unknown}
    state.update(leader=True)
    assert answers(state) == {**dict.fromkeys(ready, SERVING), **unknown}
    state.update(leader=False)
    assert not state.ready
    assert set(state.statuses()) == {*ready, LIVENESS}


@asynccontextmanager
async def serving(state: HealthState) -> AsyncIterator[aio.Channel]:
    server = GrpcioServer(health_handlers(state))
    port = await server.start("127.0.0.1", 0)
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.close()


async def test_check_and_list_over_grpc() -> None:
    state = HealthState()
    async with serving(state) as channel:

        async def check(service: str) -> int:
            answer = await channel.unary_unary(CHECK)(REF["Request"](service=service).SerializeToString())
            return int(REF["Response"].FromString(answer).status)

        assert await check(READINESS) == NOT_SERVING
        state.update(synced=True)
        assert await check(READINESS) == SERVING
        listed = REF["List"].FromString(await channel.unary_unary(LIST)(b""))
        assert {name: value.status for name, value in listed.statuses.items()} == dict.fromkeys(
            ("", LIVENESS, READINESS, POOL, EXT_PROC), SERVING
        )
        state.leader_election = True
        assert await check("nobody") == UNKNOWN
        with pytest.raises(aio.AioRpcError) as refused:
            await channel.unary_unary(CHECK)(b"\x0a\x05abc")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "not a HealthCheckRequest" in str(refused.value.details())
        call = channel.stream_stream(CHECK)()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "missing" in await call.details()


async def test_watch_tells_changes_and_nothing_else() -> None:
    state = HealthState()
    async with serving(state) as channel:
        watch = channel.unary_stream(WATCH)(REF["Request"](service=READINESS).SerializeToString())

        async def told() -> int:
            return int(REF["Response"].FromString(await watch.read()).status)

        assert await told() == NOT_SERVING
        state.update(leader=True)  # changes nothing for this name
        state.update(synced=True)
        assert await told() == SERVING
        state.update(draining=True)
        assert await told() == NOT_SERVING
        assert state.watchers == 1
        watch.cancel()
    assert state.watchers == 0


class Recorded:
    """A call that remembers what is sent."""

    path = WATCH
    metadata = ()
    peer = ""
    unsent = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.finished: list[tuple[int, str]] = []

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def finish(self, code: int = 0, message: str = "") -> None:
        self.finished.append((code, message))

    def abort(self, code: int, message: str) -> None:
        self.finished.append((code, message))


def test_watches_are_bounded() -> None:
    state = HealthState()
    watch = health_handlers(state)[WATCH]
    streams = []
    for _ in range(1000):
        streams.append(watch(Recorded()))
        streams[-1].receive(b"")
    one_more = Recorded()
    watch(one_more).receive(b"")
    assert one_more.finished[0][0] == 8
    for stream in streams:
        stream.closed(CloseReason.DISCONNECTED)
    assert state.watchers == 0


def test_only_the_first_message_counts() -> None:
    call = Recorded()
    stream = health_handlers(HealthState())[CHECK](call)
    stream.receive(b"")
    stream.receive(b"")
    stream.half_closed()
    assert (len(call.sent), call.finished) == (1, [(0, "")])


def test_a_damaged_watch_is_refused() -> None:
    call = Recorded()
    health_handlers(HealthState())[WATCH](call).receive(b"\x0a\x05abc")
    assert call.finished[0][0] == 3
