"""Calls over a connection fed with bytes: messages, ends, failures, refusals."""

from __future__ import annotations

import gzip
import logging
import struct
from typing import Any

import pytest

from epp.transport import frames as f
from epp.transport.call import CloseReason
from epp.transport.limits import Limits


def framed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack("!BI", flag, len(message)) + message


def data_of(frames: list[Any], stream_id: int) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.kind == "DATA" and frame.stream_id == stream_id)


def test_one_read_of_many_messages_leads_to_one_write_in_order(peer: Any) -> None:
    one, two = peer.open(), peer.open()
    peer.take()
    blob = b"".join(
        f.frame_header(len(framed(m)), f.DATA, 0, stream) + framed(m)
        for stream, m in ((one, b"a"), (two, b"b"), (one, b""), (two, b"c" * 300))
    )
    peer.send(blob)
    out = peer.take()
    assert [(frame.kind, frame.stream_id) for frame in out] == [
        ("HEADERS", one), ("DATA", one), ("HEADERS", two), ("DATA", two), ("DATA", one), ("DATA", two),
    ]  # fmt: skip
    assert data_of(out, one) == framed(b"a") + framed(b"")
    assert data_of(out, two) == framed(b"b") + framed(b"c" * 300)
    assert peer.headers(out[0]) == {":status": "200", "content-type": "application/grpc"}
    assert peer.wakes == 0


def test_messages_arrive_whole_however_they_are_cut(peer: Any) -> None:
    stream = peer.open()
    messages = [b"x", b"", b"y" * 40_000, b"z" * 7]
    payload = b"".join(framed(m) for m in messages)
    for start in range(0, len(payload), 1009):
        peer.frame(f.DATA, 0, stream, payload[start : start + 1009])
    assert peer.calls[0].messages == messages
    peer.take()
    assert peer.stats.buffered == 0


def test_frames_arrive_whole_however_the_socket_cuts_them(make_peer: Any) -> None:
    whole = make_peer(greet=False)
    blob = f.PREFACE + f.settings({4: 1 << 20}) + f.ping(b"12345678")
    block = whole.block()
    blob += f.frame_header(len(block), f.HEADERS, f.END_HEADERS, 1) + block
    blob += f.frame_header(8, f.DATA, f.END_STREAM, 1) + framed(b"abc")
    whole.send(blob)
    by_byte = make_peer(greet=False)
    for byte in blob:
        by_byte.send(bytes((byte,)))
    assert by_byte.take() == whole.take()
    assert by_byte.calls[0].messages == whole.calls[0].messages == [b"abc"]
    assert by_byte.calls[0].ended


def test_late_replies_wake_once_and_leave_together(peer: Any) -> None:
    streams = [peer.open("/t/Sink") for _ in range(3)]
    peer.take()
    for call in peer.calls:
        call.call.send(b"late")
        call.call.send(b"later")
    assert peer.wakes == 1
    out = peer.take()
    assert [data_of(out, stream) for stream in streams] == [framed(b"late") + framed(b"later")] * 3
    peer.calls[0].call.send(b"again")
    assert peer.wakes == 2


def test_finish_after_half_close_ends_cleanly(peer: Any) -> None:
    stream = peer.open()
    peer.message(stream, b"m", end=True)
    call = peer.calls[0]
    assert call.ended
    call.call.finish()
    assert call.reasons == []  # told when it is written, not inside its own call
    out = peer.take()
    assert (out[-1].kind, out[-1].flags) == ("HEADERS", f.END_HEADERS | f.END_STREAM)
    assert peer.headers(out[-1]) == {"grpc-status": "0"}
    assert call.reasons == [CloseReason.FINISHED]
    call.call.finish(5, "again")
    call.call.abort(5, "again")
    call.call.send(b"too late")
    assert peer.take() == []
    assert peer.stats.streams == 0


def test_finish_before_half_close_tells_the_client_to_stop(peer: Any) -> None:
    stream = peer.open()
    peer.calls[0].call.finish(7, "no: 100 % \u00fc\n")
    out = peer.take()
    assert [(frame.kind, frame.stream_id) for frame in out] == [("HEADERS", stream), ("RST_STREAM", stream)]
    assert peer.headers(out[0]) == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "7",
        "grpc-message": "no: 100 %25 %C3%BC%0A",
    }
    assert out[1].code == "NO_ERROR"
    peer.message(stream, b"was under way")  # neither delivered nor answered
    peer.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, stream, peer.encoder.encode([("a", "b")]))
    peer.frame(f.RST_STREAM, 0, stream, bytes(4))
    assert peer.take() == []
    assert peer.calls[0].messages == []
    assert not peer.connection.dead


def test_nothing_is_delivered_after_finish(make_peer: Any) -> None:
    def handler(call: Any) -> Any:
        return recorders.setdefault(call.path, Once(call))

    class Once:
        def __init__(self, call: Any) -> None:
            self.call, self.messages = call, []

        def receive(self, message: bytes) -> None:
            self.messages.append(message)
            self.call.send(b"r" * 100_000)
            self.call.finish()

        def half_closed(self) -> None:
            self.messages.append(b"half closed")

        def closed(self, reason: CloseReason) -> None:
            self.messages.append(reason.name.encode())

    recorders: dict[str, Once] = {}
    peer = make_peer(handlers={"/t/Echo": handler})
    stream = peer.open()
    peer.frame(f.DATA, 0, stream, framed(b"1") + framed(b"2"))
    peer.message(stream, b"3")
    peer.message(stream, b"4", end=True)
    assert len(data_of(peer.take(), stream)) == 65_535  # the rest waits for the window, and the trailers behind it
    peer.frame(f.WINDOW_UPDATE, 0, 0, struct.pack("!I", 1 << 20))
    peer.frame(f.WINDOW_UPDATE, 0, stream, struct.pack("!I", 1 << 20))
    out = peer.take()
    assert len(data_of(out, stream)) == 100_005 - 65_535
    assert out[-1].flags & f.END_STREAM
    assert out[-1].kind == "HEADERS"
    assert recorders["/t/Echo"].messages == [b"1", b"FINISHED"]


def test_a_handler_may_finish_before_it_exists(make_peer: Any) -> None:
    class Refusing:
        def __init__(self, call: Any) -> None:
            self.reasons: list[CloseReason] = []
            seen.append(self)
            call.finish(16, "who are you")

        def receive(self, message: bytes) -> None:
            raise AssertionError

        def half_closed(self) -> None:
            raise AssertionError

        def closed(self, reason: CloseReason) -> None:
            self.reasons.append(reason)

    seen: list[Refusing] = []
    peer = make_peer(handlers={"/t/Echo": Refusing})
    peer.open(end=True)
    (answer, reset) = peer.take()
    assert peer.headers(answer)["grpc-status"] == "16"
    assert reset.kind == "RST_STREAM"
    assert seen[0].reasons == [CloseReason.FINISHED]


def test_abort_drops_what_waits(make_peer: Any) -> None:
    peer = make_peer(settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 20})
    stream = peer.open("/t/Sink")
    call = peer.calls[0].call
    call.send(b"x" * 15)
    call.send(b"y" * 10)
    assert call.unsent == 15
    call.abort(8, "enough")
    assert call.unsent == 0
    out = peer.take()
    assert data_of(out, stream) == framed(b"x" * 15)
    assert peer.headers(out[0])
    assert peer.headers(out[2]) == {"grpc-status": "8", "grpc-message": "enough"}
    assert peer.calls[0].reasons == [CloseReason.ABORTED]
    assert (peer.stats.buffered, peer.connection.outbox.unsent) == (0, 0)


def test_abort_inside_a_message_resets(make_peer: Any) -> None:
    peer = make_peer(settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 20})
    peer.open("/t/Sink")
    peer.calls[0].call.send(b"x" * 50)
    peer.take()
    peer.calls[0].call.abort(8, "enough")
    (reset,) = peer.take()
    assert (reset.kind, reset.code) == ("RST_STREAM", "INTERNAL_ERROR")
    assert peer.calls[0].reasons == [CloseReason.ABORTED]


def test_reset_and_disconnect_reach_every_stream_once(peer: Any) -> None:
    first, second = peer.open(), peer.open()
    third = peer.open()
    peer.calls[2].call.finish()
    peer.frame(f.RST_STREAM, 0, first, struct.pack("!I", 8))
    assert peer.calls[0].reasons == [CloseReason.RESET]
    peer.calls[0].call.send(b"nobody is there")
    peer.connection.lost()
    peer.connection.lost()
    assert [call.reasons for call in peer.calls] == [
        [CloseReason.RESET], [CloseReason.DISCONNECTED], [CloseReason.FINISHED],
    ]  # fmt: skip
    assert (second, third) == (3, 5)
    assert peer.stats.streams == 0


def test_a_call_that_another_ends_while_the_connection_is_lost_hears_of_it_once(make_peer: Any) -> None:
    class Linked:
        def __init__(self, call: Any) -> None:
            self.call = call
            self.reasons: list[CloseReason] = []
            linked.append(self)

        def receive(self, message: bytes) -> None:
            raise AssertionError

        def half_closed(self) -> None:
            raise AssertionError

        def closed(self, reason: CloseReason) -> None:
            self.reasons.append(reason)
            for other in linked:
                other.call.finish()

    linked: list[Linked] = []
    peer = make_peer(handlers={"/t/Echo": Linked})
    for _ in range(3):
        peer.open()
    peer.connection.lost()
    assert [len(one.reasons) for one in linked] == [1, 1, 1]
    assert linked[0].reasons == [CloseReason.DISCONNECTED]
    assert peer.stats.streams == 0


def test_a_failing_handler_ends_its_own_call_only(make_peer: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def __init__(self, call: Any) -> None:
            self.where = dict(call.metadata)[b"where"].decode()
            self.reasons: list[CloseReason] = []
            seen.append(self)
            self.fail("start")

        def fail(self, where: str) -> None:
            if self.where == where:
                raise RuntimeError(f"fails at {where}")

        def receive(self, message: bytes) -> None:
            self.fail("receive")

        def half_closed(self) -> None:
            self.fail("half_closed")

        def closed(self, reason: CloseReason) -> None:
            self.reasons.append(reason)
            self.fail("closed")

    seen: list[Failing] = []
    peer = make_peer(handlers={"/t/Fail": Failing})
    for where in ("start", "receive", "half_closed"):
        stream = peer.open("/t/Fail", where=where)
        peer.message(stream, b"m")
        peer.frame(f.DATA, 0, stream, framed(b"m")[:3])
        peer.frame(f.DATA, 0, stream, framed(b"m")[3:])
        peer.frame(f.DATA, f.END_STREAM, stream, b"")
        out = [frame for frame in peer.take() if frame.stream_id == stream and frame.kind == "HEADERS"]
        assert peer.headers(out[0])["grpc-status"] == "13"
    peer.frame(f.RST_STREAM, 0, peer.open("/t/Fail", where="closed"), bytes(4))
    assert [call.reasons for call in seen] == [
        [], [CloseReason.ABORTED], [CloseReason.ABORTED], [CloseReason.RESET],
    ]  # fmt: skip
    assert peer.stats.handler_errors == 4
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 4
    assert not peer.connection.dead


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"_path": "/t/Nobody"}, {":status": "200", "grpc-status": "12"}),
        ({"content_type": "text/plain"}, {":status": "415"}),
        ({"content_type": "application/grpc-web"}, {":status": "415"}),
        ({"content_type": None}, {":status": "415"}),
        ({"_method": "GET"}, {":status": "405", "allow": "POST"}),
        ({"grpc_encoding": "zstd"}, {"grpc-status": "12", "grpc-accept-encoding": "identity,gzip"}),
        ({"cookie": "x" * 70_000}, {":status": "431"}),
        ({f"x_{i}": "v" for i in range(250)}, {":status": "431"}),
    ],
)
@pytest.mark.parametrize("end", [True, False])
def test_requests_that_are_no_call_of_ours(peer: Any, changes: Any, expected: dict[str, str], end: bool) -> None:
    block = peer.block(**changes)
    flags = f.END_STREAM if end else 0
    peer.frame(f.HEADERS, flags, 1, block[:16000])
    while block := block[16000:]:
        peer.frame(f.CONTINUATION, 0, 1, block[:16000])
    peer.frame(f.CONTINUATION, f.END_HEADERS, 1)
    out = peer.take()
    assert out[0].flags == f.END_HEADERS | f.END_STREAM
    assert expected.items() <= peer.headers(out[0]).items()
    assert [frame.kind for frame in out[1:]] == ([] if end else ["RST_STREAM"])
    peer.message(1, b"on its way") if not end else None
    assert peer.take() == []
    peer.next_id = 3
    stream = peer.open()
    peer.message(stream, b"next")
    assert data_of(peer.take(), stream) == framed(b"next")


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc;a=b"])
def test_content_types_of_grpc(peer: Any, content_type: str) -> None:
    peer.open(content_type=content_type)
    assert len(peer.calls) == 1


def test_metadata_path_and_peer(peer: Any) -> None:
    for _ in range(3):  # the second block is decoded against the table, the third is remembered
        peer.open(x_request_id="42", trace_bin="AAA")
    for recorder in peer.calls:
        call = recorder.call
        assert (call.path, call.peer) == ("/t/Echo", "10.0.0.9:1234")
        assert list(call.metadata) == [
            (b"content-type", b"application/grpc"), (b"te", b"trailers"),
            (b"x-request-id", b"42"), (b"trace-bin", b"AAA"),
        ]  # fmt: skip
    assert peer.calls[1].call.metadata is peer.calls[2].call.metadata


def test_a_remembered_block_is_forgotten_when_the_table_changes(peer: Any) -> None:
    block = bytes([0x83, 0x86, 0xBE, 0xBF, 0xC0])  # :method, :scheme, and the three newest entries of the table
    peer.encoder = None

    def define(path: bytes) -> bytes:
        def text(value: bytes) -> bytes:
            return bytes((len(value),)) + value

        return (
            bytes([0x83, 0x86])
            + b"\x40" + text(b"te") + text(b"trailers")
            + b"\x40" + text(b"content-type") + text(b"application/grpc")
            + b"\x40" + text(b":path") + text(path)
        )  # fmt: skip

    stream = iter(range(1, 99, 2))
    for path in (b"/t/Echo", b"/t/Sink"):
        # pseudo-headers come first in a request: the definition itself is malformed, but it fills the table
        peer.frame(f.HEADERS, f.END_HEADERS, next(stream), define(path))
        for _ in range(3):
            peer.frame(f.HEADERS, f.END_HEADERS, next(stream), bytes([*block[:3], 0xBF, 0xC0]))
    assert [recorder.call.path for recorder in peer.calls] == ["/t/Echo"] * 3 + ["/t/Sink"] * 3


def test_gzip_requests(peer: Any) -> None:
    stream = peer.open(grpc_encoding="gzip")
    packed = gzip.compress(b"a" * 100_000)
    peer.frame(f.DATA, 0, stream, framed(packed, 1) + framed(b"plain"))
    assert peer.calls[0].messages == [b"a" * 100_000, b"plain"]


@pytest.mark.parametrize(
    ("encoding", "payload", "status"),
    [
        ("gzip", framed(gzip.compress(bytes(200_000), mtime=0), 1), "8"),
        ("gzip", framed(gzip.compress(b"abc", mtime=0)[:-1], 1), "13"),
        ("gzip", framed(gzip.compress(b"abc", mtime=0) + b"x", 1), "13"),
        ("gzip", framed(b"not gzip", 1), "13"),
        ("gzip", framed(b"abc", 2), "13"),
        ("identity", framed(gzip.compress(b"abc", mtime=0), 1), "13"),
        ("identity", b"\0\0\1\xff\xff", "8"),
        ("identity", b"\0\xff\xff\xff\xff" + bytes(100), "8"),
    ],
)
def test_messages_that_end_the_call(make_peer: Any, encoding: str, payload: bytes, status: str) -> None:
    peer = make_peer(limits=Limits(message=100_000))
    stream = peer.open(grpc_encoding=encoding)
    other = peer.open()
    peer.frame(f.DATA, 0, stream, payload)
    out = [frame for frame in peer.take() if frame.stream_id == stream]
    assert [frame.kind for frame in out] == ["HEADERS", "RST_STREAM"]
    assert peer.headers(out[0])["grpc-status"] == status
    assert peer.calls[0].reasons == [CloseReason.ABORTED]
    peer.message(other, b"not hurt")
    assert peer.calls[1].messages == [b"not hurt"]
    assert peer.stats.buffered == 0


def test_a_message_limit_below_the_frame_size(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(message=10))
    stream = peer.open()
    peer.message(stream, b"0123456789")
    peer.message(stream, b"0123456789x")
    assert peer.calls[0].messages == [b"0123456789"]
    assert peer.calls[0].reasons == [CloseReason.ABORTED] or peer.take()
    assert peer.stats.limits_hit == {"message": 1}


def test_incomplete_messages_are_bounded(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(unread=30_000))
    first, second = peer.open(), peer.open()
    for stream in (first, second):
        peer.frame(f.DATA, 0, stream, framed(bytes(60_000))[:16_000])
    out = peer.take()
    assert [(frame.kind, frame.stream_id) for frame in out] == [("HEADERS", second), ("RST_STREAM", second)]
    assert peer.headers(out[0])["grpc-status"] == "8"
    assert peer.stats.buffered == 16_000
    assert peer.stats.limits_hit == {"unread": 1}
    peer.frame(f.RST_STREAM, 0, first, bytes(4))
    assert peer.stats.buffered == 0


def test_replies_are_bounded_over_the_server(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(buffered_server=100_000), settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    peer.open("/t/Sink")
    peer.open("/t/Sink")
    peer.calls[0].call.send(bytes(60_000))
    peer.calls[1].call.send(bytes(60_000))
    peer.take()
    assert [call.reasons for call in peer.calls] == [[], [CloseReason.ABORTED]]
    assert peer.stats.limits_hit == {"buffered_server": 1}
    assert peer.stats.buffered == 60_005


def test_end_inside_a_message(peer: Any) -> None:
    stream = peer.open()
    peer.frame(f.DATA, f.END_STREAM, stream, framed(b"abc")[:-1])
    assert peer.headers(peer.take()[0])["grpc-status"] == "13"
    assert not peer.calls[0].ended


def test_trailers_end_the_request(peer: Any) -> None:
    stream = peer.open()
    peer.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, stream, peer.encoder.encode([("x", "y")]))
    assert peer.calls[0].ended
    assert peer.take() == []


def test_deadline(peer: Any) -> None:
    peer.open(grpc_timeout="1500m")
    peer.open(grpc_timeout="1H")
    peer.open(grpc_timeout="soon")
    assert [timer.seconds for timer in peer.timers] == [1.5, 3600]
    peer.calls[1].call.finish()
    assert peer.timers[1].cancelled
    peer.take()
    peer.timers[0].ring()
    assert peer.wakes == 1
    assert peer.headers(peer.take()[0])["grpc-status"] == "4"
    assert peer.calls[0].reasons == [CloseReason.ABORTED]


def test_padding_and_priority_are_skipped(peer: Any) -> None:
    block = peer.block()
    peer.frame(
        f.HEADERS, f.PADDED | f.HAS_PRIORITY | f.END_HEADERS, 1, b"\x03" + b"\x00\x00\x00\x05\x10" + block + bytes(3)
    )
    peer.frame(f.PRIORITY, 0, 1, bytes(4) + b"\1")
    peer.frame(f.PRIORITY, 0, 77, bytes(4) + b"\1")
    peer.frame(f.DATA, f.PADDED, 1, b"\x05" + framed(b"padded") + bytes(5))
    peer.frame(0xFA, 0xFF, 1, b"unknown frames are ignored")
    assert peer.calls[0].messages == [b"padded"]


def test_content_length(peer: Any) -> None:
    stream = peer.open(content_length="16")
    peer.message(stream, b"abc")
    peer.message(stream, b"def", end=True)
    assert peer.calls[0].ended
    stream = peer.open(content_length="17")
    peer.message(stream, b"abc", end=True)
    assert peer.take()[-1].code == "PROTOCOL_ERROR"
    assert peer.calls[1].reasons == [CloseReason.ABORTED]


def test_a_smaller_table_is_acknowledged_in_the_next_block(peer: Any) -> None:
    peer.frame(f.SETTINGS, 0, 0, struct.pack("!HI", f.SETTINGS_HEADER_TABLE_SIZE, 0))
    peer.decoder.max_allowed_table_size = 0
    stream = peer.open()
    peer.message(stream, b"x")
    ack, headers, _ = peer.take()
    assert (ack.kind, ack.flags) == ("SETTINGS", f.ACK)
    assert peer.headers(headers)[":status"] == "200"  # hpack's decoder insists on the update


def test_too_many_streams_are_refused(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(concurrent_streams=2))
    for _ in range(3):
        stream = peer.open()
    (reset,) = peer.take()
    assert (reset.kind, reset.stream_id, reset.code) == ("RST_STREAM", stream, "REFUSED_STREAM")
    peer.message(stream, b"under way")
    peer.calls[0].call.finish()
    assert peer.open() > stream
    assert len(peer.calls) == 3
    assert peer.stats.limits_hit == {"concurrent_streams": 1}


def test_a_stream_costs_little(peer: Any) -> None:
    """5 000 open streams: what the transport keeps for each is far below 2 KB."""
    import tracemalloc

    for _ in range(10):
        peer.open("/t/Sink")
    tracemalloc.start()
    try:
        for _ in range(1000):
            peer.open("/t/Sink")
        mine = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/epp/transport/*")])
        kept = sum(trace.size for trace in mine.traces)
    finally:
        tracemalloc.stop()
    assert kept / 1000 < 1000


def test_long_status_messages_are_cut_at_a_whole_sequence(peer: Any) -> None:
    peer.open()
    peer.calls[0].call.finish(13, "\u20ac" * 1000)
    message = peer.headers(peer.take()[0])["grpc-message"]
    assert message == "%E2%82%AC" * (1024 // 9)


def test_a_resized_table_and_many_different_blocks(peer: Any) -> None:
    for index in range(300):  # more than are remembered
        block = peer.encoder.encode([*_request("/t/Sink"), (f"n{index % 2}", "v")])
        update = b"\x20\x3f\xe1\x1f" if index == 150 else b""  # to nothing and back to 4096
        if update:
            peer.encoder = type(peer.encoder)()
            block = peer.encoder.encode([*_request("/t/Sink"), ("n0", "v")])
        peer.frame(f.HEADERS, f.END_HEADERS, 2 * index + 1, update + block)
    assert len(peer.calls) == 300
    assert {dict(recorder.call.metadata).get(b"n0") for recorder in peer.calls} == {b"v", None}


def test_blocks_are_remembered_up_to_a_bound(peer: Any) -> None:
    for index in range(600):
        literal = b"\x00\x01n" + bytes((3,)) + b"%03d" % index  # a literal enters no table
        peer.frame(f.HEADERS, f.END_HEADERS, 2 * index + 1, _literal_request() + literal)
    assert [dict(recorder.call.metadata)[b"n"] for recorder in peer.calls] == [b"%03d" % index for index in range(600)]


def _request(path: str) -> list[tuple[str, str]]:
    return [(":method", "POST"), (":scheme", "http"), (":path", path), ("content-type", "application/grpc")]


def _literal_request() -> bytes:
    return b"\x83\x86\x04\x07/t/Sink" + b"\x0f\x10\x10application/grpc"
