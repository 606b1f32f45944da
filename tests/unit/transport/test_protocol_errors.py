"""Each way to break the protocol, and the error of RFC 9113 that answers it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from epp.transport import frames as f
from epp.transport.call import CloseReason
from epp.transport.limits import Limits

WORD = struct.Struct("!I")
Breach = Callable[[Any], None]


def open_one(peer: Any) -> None:
    peer.open("/t/Sink")


def settings(key: int, value: int) -> bytes:
    return struct.pack("!HI", key, value)


def headers_of(peer: Any, *fields: tuple[str, str]) -> None:
    peer.frame(f.HEADERS, f.END_HEADERS, peer.next_id, peer.encoder.encode(list(fields)))


GOOD = ((":method", "POST"), (":scheme", "http"), (":path", "/t/Sink"), ("content-type", "application/grpc"))

CONNECTION: list[tuple[str, str, Breach]] = [
    ("frame over the limit", "FRAME_SIZE_ERROR", lambda p: p.frame(f.DATA, 0, 1, bytes(16_385))),
    ("frame over the limit, only announced", "FRAME_SIZE_ERROR", lambda p: p.send(f.frame_header(20_000, 0, 0, 1))),
    ("DATA on stream 0", "PROTOCOL_ERROR", lambda p: p.frame(f.DATA, 0, 0, b"x")),
    ("DATA on an idle stream", "PROTOCOL_ERROR", lambda p: p.frame(f.DATA, 0, 99, b"x")),
    ("DATA on a stream of ours", "PROTOCOL_ERROR", lambda p: p.frame(f.DATA, 0, 2, b"x")),
    ("DATA without its pad length", "FRAME_SIZE_ERROR", lambda p: p.frame(f.DATA, f.PADDED, 1)),
    ("DATA with too much padding", "PROTOCOL_ERROR", lambda p: p.frame(f.DATA, f.PADDED, 1, b"\5abcd")),
    ("HEADERS on stream 0", "PROTOCOL_ERROR", lambda p: p.frame(f.HEADERS, f.END_HEADERS, 0, p.block())),
    ("HEADERS on an even stream", "PROTOCOL_ERROR", lambda p: p.frame(f.HEADERS, f.END_HEADERS, 4, p.block())),
    ("HEADERS shorter than priority", "FRAME_SIZE_ERROR", lambda p: p.frame(f.HEADERS, f.HAS_PRIORITY, 3, b"abcd")),
    ("HEADERS with too much padding", "PROTOCOL_ERROR", lambda p: p.frame(f.HEADERS, f.PADDED, 3, b"\x09abcd")),
    ("HEADERS that HPACK cannot read", "COMPRESSION_ERROR", lambda p: p.frame(f.HEADERS, f.END_HEADERS, 3, b"\xff")),
    ("HEADERS with an empty index", "COMPRESSION_ERROR", lambda p: p.frame(f.HEADERS, f.END_HEADERS, 3, b"\x80")),
    ("a table larger than allowed", "COMPRESSION_ERROR", lambda p: p.frame(f.HEADERS, 4, 3, b"\x3f\xe2\x1f")),
    ("headers far over the limit", "ENHANCE_YOUR_CALM", lambda p: _bomb(p)),
    ("a block that never ends", "ENHANCE_YOUR_CALM", lambda p: _endless_block(p)),
    ("CONTINUATION without HEADERS", "PROTOCOL_ERROR", lambda p: p.frame(f.CONTINUATION, f.END_HEADERS, 1)),
    ("CONTINUATION of another stream", "PROTOCOL_ERROR", lambda p: _split(p, f.CONTINUATION, 5)),
    ("DATA inside a header block", "PROTOCOL_ERROR", lambda p: _split(p, f.DATA, 1)),
    ("PING inside a header block", "PROTOCOL_ERROR", lambda p: _split(p, f.PING, 0)),
    ("unknown frame inside a header block", "PROTOCOL_ERROR", lambda p: _split(p, 0x55, 3)),
    ("PRIORITY on stream 0", "PROTOCOL_ERROR", lambda p: p.frame(f.PRIORITY, 0, 0, bytes(5))),
    ("RST_STREAM on stream 0", "PROTOCOL_ERROR", lambda p: p.frame(f.RST_STREAM, 0, 0, bytes(4))),
    ("RST_STREAM on an idle stream", "PROTOCOL_ERROR", lambda p: p.frame(f.RST_STREAM, 0, 7, bytes(4))),
    ("RST_STREAM of the wrong size", "FRAME_SIZE_ERROR", lambda p: p.frame(f.RST_STREAM, 0, 1, bytes(3))),
    ("SETTINGS on a stream", "PROTOCOL_ERROR", lambda p: p.frame(f.SETTINGS, 0, 1)),
    ("SETTINGS of the wrong size", "FRAME_SIZE_ERROR", lambda p: p.frame(f.SETTINGS, 0, 0, bytes(7))),
    ("SETTINGS ack with a payload", "FRAME_SIZE_ERROR", lambda p: p.frame(f.SETTINGS, f.ACK, 0, bytes(6))),
    ("SETTINGS frame size too small", "PROTOCOL_ERROR", lambda p: p.frame(f.SETTINGS, 0, 0, settings(5, 16_383))),
    ("SETTINGS frame size too large", "PROTOCOL_ERROR", lambda p: p.frame(f.SETTINGS, 0, 0, settings(5, 1 << 24))),
    ("SETTINGS push neither 0 nor 1", "PROTOCOL_ERROR", lambda p: p.frame(f.SETTINGS, 0, 0, settings(2, 2))),
    ("SETTINGS window too large", "FLOW_CONTROL_ERROR", lambda p: p.frame(f.SETTINGS, 0, 0, settings(4, 1 << 31))),
    ("SETTINGS lift a window over the top", "FLOW_CONTROL_ERROR", lambda p: _lift(p)),
    ("PUSH_PROMISE", "PROTOCOL_ERROR", lambda p: p.frame(f.PUSH_PROMISE, f.END_HEADERS, 1, bytes(4))),
    ("PING on a stream", "PROTOCOL_ERROR", lambda p: p.frame(f.PING, 0, 1, bytes(8))),
    ("PING of the wrong size", "FRAME_SIZE_ERROR", lambda p: p.frame(f.PING, 0, 0, bytes(9))),
    ("GOAWAY on a stream", "PROTOCOL_ERROR", lambda p: p.frame(f.GOAWAY, 0, 1, bytes(8))),
    ("GOAWAY of the wrong size", "FRAME_SIZE_ERROR", lambda p: p.frame(f.GOAWAY, 0, 0, bytes(7))),
    ("WINDOW_UPDATE of 0", "PROTOCOL_ERROR", lambda p: p.frame(f.WINDOW_UPDATE, 0, 0, bytes(4))),
    ("WINDOW_UPDATE on an idle stream", "PROTOCOL_ERROR", lambda p: p.frame(f.WINDOW_UPDATE, 0, 9, WORD.pack(1))),
    ("WINDOW_UPDATE of the wrong size", "FRAME_SIZE_ERROR", lambda p: p.frame(f.WINDOW_UPDATE, 0, 0, bytes(5))),
    ("window over the top", "FLOW_CONTROL_ERROR", lambda p: p.frame(f.WINDOW_UPDATE, 0, 0, WORD.pack(2**31 - 1))),
    ("HEADERS on a stream that ended", "STREAM_CLOSED", lambda p: _reopen(p)),
    ("a stream id below the last", "STREAM_CLOSED", lambda p: _lower(p)),
    ("DATA over the connection's window", "FLOW_CONTROL_ERROR", lambda p: _overrun(p, streams=5)),
]

STREAM: list[tuple[str, str, Breach]] = [
    ("DATA over the stream's window", "FLOW_CONTROL_ERROR", lambda p: _overrun(p, streams=1)),
    ("whole messages over the stream's window", "FLOW_CONTROL_ERROR", lambda p: _overrun(p, streams=1, whole=True)),
    ("WINDOW_UPDATE of 0", "PROTOCOL_ERROR", lambda p: p.frame(f.WINDOW_UPDATE, 0, 1, bytes(4))),
    ("window over the top", "FLOW_CONTROL_ERROR", lambda p: p.frame(f.WINDOW_UPDATE, 0, 1, WORD.pack(2**31 - 1))),
    ("DATA after END_STREAM", "STREAM_CLOSED", lambda p: [p.message(1, b"", end=True), p.message(1, b"x")]),
    ("HEADERS after END_STREAM", "STREAM_CLOSED", lambda p: [p.message(1, b"", end=True), _trailers(p, ("a", "b"))]),
    ("trailers without END_STREAM", "PROTOCOL_ERROR", lambda p: p.frame(f.HEADERS, f.END_HEADERS, 1, p.block())),
    ("pseudo-header in trailers", "PROTOCOL_ERROR", lambda p: _trailers(p, (":path", "/"))),
    ("upper case in trailers", "PROTOCOL_ERROR", lambda p: _trailers(p, ("Ab", "c"))),
    ("PRIORITY of the wrong size", "FRAME_SIZE_ERROR", lambda p: p.frame(f.PRIORITY, 0, 1, bytes(4))),
]

MALFORMED: list[tuple[str, tuple[tuple[str, str], ...]]] = [
    ("upper case", (*GOOD, ("Upper", "x"))),
    ("space in a name", (*GOOD, ("a b", "x"))),
    ("empty name", (*GOOD, ("", "x"))),
    ("line feed in a value", (*GOOD, ("a", "x\ny"))),
    ("NUL in a value", (*GOOD, ("a", "x\0y"))),
    ("space before a value", (*GOOD, ("a", " x"))),
    ("connection header", (*GOOD, ("connection", "close"))),
    ("transfer-encoding", (*GOOD, ("transfer-encoding", "chunked"))),
    ("te that is not trailers", (*GOOD, ("te", "gzip"))),
    ("pseudo-header behind others", (*GOOD, (":authority", "x"))),
    ("pseudo-header twice", (GOOD[0], *GOOD)),
    ("pseudo-header of a response", ((":status", "200"), *GOOD)),
    ("unknown pseudo-header", ((":what", "200"), *GOOD)),
    ("line feed in the path", (*GOOD[:2], (":path", "/a\nb"), GOOD[3])),
    ("no method", GOOD[1:]),
    ("no scheme", (GOOD[0], *GOOD[2:])),
    ("no path", (*GOOD[:2], GOOD[3])),
    ("empty path", (*GOOD[:2], (":path", ""), GOOD[3])),
    ("content-length that is no number", (*GOOD, ("content-length", "1x"))),
    ("two content-lengths", (*GOOD, ("content-length", "1"), ("content-length", "2"))),
]


def _bomb(peer: Any) -> None:
    """One large header in the table, and a block of references to it."""
    peer.frame(f.HEADERS, f.END_HEADERS, 3, peer.block(x_large="x" * 3900))
    peer.frame(f.HEADERS, f.END_HEADERS, 5, b"\x83\x86\xbe" + b"\xbe" * 1000)


def _endless_block(peer: Any) -> None:
    peer.frame(f.HEADERS, 0, 3, peer.block())
    for _ in range(20):
        peer.frame(f.CONTINUATION, 0, 3, bytes(10_000))


def _split(peer: Any, kind: int, stream_id: int) -> None:
    peer.frame(f.HEADERS, 0, 3, peer.block())
    peer.frame(kind, 0, stream_id, struct.pack("!BI", 0, 3) + b"abc")


def _lift(peer: Any) -> None:
    peer.frame(f.WINDOW_UPDATE, 0, 1, WORD.pack(2**31 - 1 - 65_535))
    peer.frame(f.SETTINGS, 0, 0, settings(4, 65_536))


def _reopen(peer: Any) -> None:
    peer.frame(f.DATA, f.END_STREAM, 1)
    peer.calls[0].call.finish()
    peer.frame(f.HEADERS, f.END_HEADERS, 1, peer.block())


def _lower(peer: Any) -> None:
    peer.frame(f.HEADERS, f.END_HEADERS, 9, peer.block())
    peer.frame(f.HEADERS, f.END_HEADERS, 7, peer.block())


def _overrun(peer: Any, *, streams: int, whole: bool = False) -> None:
    """70 000 bytes on each stream; no credit comes, because the replies are left lying."""
    for _ in range(streams - 1):
        peer.open("/t/Sink")
    for recorder in peer.calls:
        recorder.call.send(bytes(100_000))
    for stream in range(1, 2 * streams, 2):
        for piece in range(7):
            if whole:
                peer.message(stream, bytes(9_995))
            else:
                peer.frame(f.DATA, 0, stream, (b"" if piece else struct.pack("!BI", 0, 80_000)) + bytes(10_000))


def _trailers(peer: Any, *fields: tuple[str, str]) -> None:
    peer.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, peer.encoder.encode(list(fields)))


TIGHT = Limits(stream_window=65_535, connection_window=200_000, unsent_stream=1000, unsent_connection=1000)


@pytest.mark.parametrize(("code", "breach"), [row[1:] for row in CONNECTION], ids=[row[0] for row in CONNECTION])
def test_breaches_that_end_the_connection(make_peer: Any, code: str, breach: Breach) -> None:
    peer = make_peer(limits=TIGHT)
    peer.open("/t/Sink")
    peer.next_id = 3
    breach(peer)
    last = peer.take()[-1]
    assert (last.kind, last.code) == ("GOAWAY", code)
    assert last.payload[8:], "GOAWAY says why"
    assert peer.connection.over
    assert peer.stats.errors_by_code[code] >= 1
    assert all(len(call.reasons) == 1 for call in peer.calls)
    assert peer.stats.streams == peer.stats.buffered == 0
    peer.send(f.ping(bytes(8)))
    assert peer.take() == []


@pytest.mark.parametrize(("code", "breach"), [row[1:] for row in STREAM], ids=[row[0] for row in STREAM])
def test_breaches_that_end_one_stream(make_peer: Any, code: str, breach: Breach) -> None:
    peer = make_peer(limits=TIGHT)
    peer.open("/t/Sink")
    breach(peer)
    resets = [frame for frame in peer.take() if frame.kind == "RST_STREAM"]
    assert [(frame.stream_id, frame.code) for frame in resets] == [(1, code)]
    assert peer.calls[0].reasons == [CloseReason.ABORTED]
    assert peer.stats.errors_by_code == {code: 1}
    stream = peer.open("/t/Echo")
    peer.message(stream, b"not hurt")
    assert peer.calls[1].messages == [b"not hurt"]


@pytest.mark.parametrize("fields", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_requests(peer: Any, fields: tuple[tuple[str, str], ...]) -> None:
    headers_of(peer, *fields)
    (reset,) = peer.take()
    assert (reset.kind, reset.stream_id, reset.code) == ("RST_STREAM", 1, "PROTOCOL_ERROR")
    assert peer.calls == []
    peer.next_id = 3
    peer.open()
    assert len(peer.calls) == 1


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"\x16\x03\x01\x00\xa5\x01", b"PRX"],
)
def test_what_is_not_http_2(make_peer: Any, first: bytes) -> None:
    peer = make_peer(greet=False)
    peer.send(first)
    assert peer.take()[-1].code == "PROTOCOL_ERROR"


@pytest.mark.parametrize(
    "frame", [f.ping(bytes(8)), f.SETTINGS_ACK, f.window_update(0, 1), f.frame_header(8, f.DATA, 0, 1) + bytes(8)]
)
def test_settings_come_first(make_peer: Any, frame: bytes) -> None:
    peer = make_peer(greet=False)
    peer.send(f.PREFACE + frame)
    assert peer.take()[-1].code == "PROTOCOL_ERROR"


def _ping(peer: Any) -> None:
    peer.frame(f.PING, 0, 0, bytes(8))


def _rapid_reset(peer: Any) -> None:
    peer.frame(f.RST_STREAM, 0, peer.open("/t/Sink"), WORD.pack(8))


FLOODS: dict[str, Breach] = {
    "PING": _ping,
    "SETTINGS": lambda p: p.frame(f.SETTINGS),
    "PRIORITY": lambda p: p.frame(f.PRIORITY, 0, 1, bytes(5)),
    "empty DATA": lambda p: p.frame(f.DATA, 0, 1),
    "small WINDOW_UPDATE": lambda p: p.frame(f.WINDOW_UPDATE, 0, 0, WORD.pack(1)),
    "unknown frames": lambda p: p.frame(0x77, 0, 0),
    "GOAWAY": lambda p: p.frame(f.GOAWAY, 0, 0, bytes(8)),
    "rapid reset": _rapid_reset,
    "unknown methods": lambda p: p.open("/t/Nobody", end=True),
    "stream errors": lambda p: headers_of(p, ("A", "b")) or setattr(p, "next_id", p.next_id + 2),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_floods_are_sent_away_and_a_slow_trickle_is_not(make_peer: Any, flood: Breach) -> None:
    limits = Limits(nuisance=1000, nuisance_per_second=100)
    trickle = make_peer(limits=limits)
    trickle.open("/t/Sink")
    for _ in range(1500):
        trickle.now += 0.5
        flood(trickle)
        trickle.connection.take()
    assert not trickle.connection.dead
    peer = make_peer(limits=limits)
    peer.open("/t/Sink")
    for _ in range(1500):
        flood(peer)
        if peer.connection.dead:
            break
    assert peer.take()[-1].code == "ENHANCE_YOUR_CALM"
    assert peer.stats.limits_hit == {"nuisance": 1}


def test_continuation_flood(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(nuisance=1000, nuisance_per_second=100))
    peer.frame(f.HEADERS, 0, 1, peer.block())
    for _ in range(1000):
        peer.frame(f.CONTINUATION, 0, 1)
    assert peer.take()[-1].code == "ENHANCE_YOUR_CALM"


def test_resets_of_served_streams_are_no_flood(make_peer: Any) -> None:
    """Envoy resets every stream that has finished, also when it was answered in full."""
    peer = make_peer(limits=Limits(nuisance=1000, nuisance_per_second=0))
    for index in range(5000):
        stream = peer.open()
        if index % 2:
            peer.message(stream, b"x")
        else:  # in two pieces
            peer.frame(f.DATA, 0, stream, b"\0\0\0")
            peer.frame(f.DATA, 0, stream, b"\0\1x")
        if index % 3 == 0:
            peer.calls[-1].call.finish()
        peer.frame(f.RST_STREAM, 0, stream, WORD.pack(2))
        peer.connection.take()
    assert not peer.connection.dead


def test_a_busy_client_that_credits_every_reply_is_no_flood(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(nuisance=1000, nuisance_per_second=0))
    stream = peer.open()
    for _ in range(5000):
        peer.message(stream, b"x")
        peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(6))
        peer.frame(f.WINDOW_UPDATE, 0, 0, WORD.pack(6))
        peer.connection.take()
    assert not peer.connection.dead


def test_frames_for_a_stream_we_reset_are_ignored_and_credited(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(connection_window=100_000))
    stream = peer.open()
    peer.calls[0].call.abort(8, "")
    peer.take()
    for _ in range(6):
        peer.frame(f.DATA, 0, stream, bytes(10_000))
    (credit,) = peer.take()
    assert (credit.kind, credit.stream_id, WORD.unpack(credit.payload)) == ("WINDOW_UPDATE", 0, (60_000,))


def test_data_on_a_stream_that_ended_by_itself_is_an_error_of_that_stream(peer: Any) -> None:
    stream = peer.open()
    peer.message(stream, b"x", end=True)
    peer.calls[0].call.finish()
    peer.take()
    peer.message(stream, b"more")
    (reset,) = peer.take()
    assert (reset.kind, reset.code) == ("RST_STREAM", "STREAM_CLOSED")
    peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(10))
    peer.frame(f.RST_STREAM, 0, stream, bytes(4))
    assert peer.take() == []


def test_only_the_latest_resets_are_remembered(peer: Any) -> None:
    first = peer.open()
    peer.calls[0].call.abort(8, "")
    for _ in range(4096):
        peer.open()
        peer.calls.pop().call.abort(8, "")
    peer.connection.take()
    peer.message(first, b"very late")
    (reset,) = peer.take()
    assert reset.code == "STREAM_CLOSED"


@pytest.mark.parametrize(
    "wrong", [{"frame_size": 1000}, {"frame_size": 1 << 24}, {"stream_window": 1}, {"connection_window": 1 << 31}]
)
def test_limits_that_http_2_does_not_know(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
