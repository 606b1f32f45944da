"""Windows, queues and credit: who waits, who goes first, and what is asked back."""

from __future__ import annotations

import struct
from typing import Any

from epp.transport import frames as f
from epp.transport.call import CloseReason
from epp.transport.limits import Limits

WORD = struct.Struct("!I")


def data_frames(frames: list[Any]) -> list[tuple[int, int]]:
    return [(frame.stream_id, len(frame.payload)) for frame in frames if frame.kind == "DATA"]


def test_a_long_reply_is_cut_and_others_take_turns(make_peer: Any) -> None:
    peer = make_peer(settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 20})
    peer.frame(f.WINDOW_UPDATE, 0, 0, WORD.pack(1 << 20))
    for _ in range(3):
        peer.open("/t/Sink")
    for recorder, size in zip(peer.calls, (60_000, 60_000, 100), strict=True):
        recorder.call.send(bytes(size))
    sent = data_frames(peer.take())
    assert sent[0] == (5, 105)  # small and not behind anything of its own stream: at once
    assert [stream for stream, _ in sent[1:]] == [1, 3] * 4
    assert [size for _, size in sent[1:]] == [16_384] * 6 + [10_853] * 2


def test_a_burst_ends_and_goes_on_in_the_next_write(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(burst=40_000), settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 20})
    peer.frame(f.WINDOW_UPDATE, 0, 0, WORD.pack(1 << 20))
    peer.open("/t/Sink")
    peer.take()
    peer.calls[0].call.send(bytes(100_000))
    sizes = []
    while peer.wakes > len(sizes):
        sizes.append(sum(size for _, size in data_frames(peer.take())))
    assert sizes == [49_152, 49_152, 1_701]


def test_the_connection_window_serves_those_who_wait_before_new_replies(make_peer: Any) -> None:
    peer = make_peer(settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 1 << 20})
    waiting, new = peer.open("/t/Sink"), peer.open()
    peer.calls[0].call.send(bytes(80_000))
    assert sum(size for _, size in data_frames(peer.take())) == 65_535
    message = struct.pack("!BI", 0, 3) + b"abc"
    peer.send(f.window_update(0, 20_000) + f.frame_header(8, f.DATA, 0, new) + message)
    assert data_frames(peer.take()) == [(waiting, 14_470), (new, 8)]


def test_a_window_below_zero_opens_again(make_peer: Any) -> None:
    peer = make_peer(settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 1000})
    stream = peer.open("/t/Sink")
    peer.calls[0].call.send(bytes(1500))
    assert data_frames(peer.take()) == [(stream, 1000)]
    peer.frame(f.SETTINGS, 0, 0, struct.pack("!HI", 4, 400))  # the window is -600 now
    peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(600))
    assert data_frames(peer.take()) == []
    peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(1))
    assert data_frames(peer.take()) == [(stream, 1)]
    peer.frame(f.SETTINGS, 0, 0, struct.pack("!HI", 4, 1000))
    assert data_frames(peer.take()) == [(stream, 504)]
    assert peer.calls[0].call.unsent == 0


def test_small_messages_that_waited_share_a_frame(make_peer: Any) -> None:
    peer = make_peer(settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    stream = peer.open("/t/Sink")
    for size in (1, 2, 3):
        peer.calls[0].call.send(bytes(size))
    peer.calls[0].call.finish()
    peer.take()
    peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(100))
    out = peer.take()
    assert data_frames(out) == [(stream, 21)]
    assert out[-2].flags & f.END_STREAM
    assert peer.calls[0].reasons == [CloseReason.FINISHED]


def test_a_full_socket_stops_replies_but_not_answers_to_pings(peer: Any) -> None:
    stream = peer.open("/t/Sink")
    peer.take()
    peer.connection.outbox.set_writable(False)
    peer.calls[0].call.send(b"later")
    peer.frame(f.PING, 0, 0, b"12345678")
    pong, headers = peer.take()
    assert headers.kind == "HEADERS"
    assert (pong.kind, pong.flags, pong.payload) == ("PING", f.ACK, b"12345678")
    wakes = peer.wakes
    peer.connection.outbox.set_writable(True)
    assert peer.wakes == wakes + 1
    assert data_frames(peer.take()) == [(stream, 10)]


def test_pings_are_answered_before_everything_else(peer: Any) -> None:
    stream = peer.open()
    peer.message(stream, b"x")
    peer.frame(f.PING, 0, 0, b"12345678")
    peer.frame(f.PING, f.ACK, 0, b"whatever")
    assert [frame.kind for frame in peer.take()] == ["PING", "HEADERS", "DATA"]


def test_credit_comes_back_in_halves(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(stream_window=100_000, connection_window=150_000))
    one, two = peer.open("/t/Sink"), peer.open("/t/Sink")
    peer.take()
    for _ in range(5):
        peer.message(one, bytes(9_995))
    assert peer.take() == []
    peer.message(one, bytes(9_995))
    (credit,) = peer.take()
    assert (credit.stream_id, WORD.unpack(credit.payload)[0]) == (one, 60_000)
    peer.message(two, bytes(9_995))
    peer.message(two, bytes(9_995))
    (credit,) = peer.take()
    assert (credit.stream_id, WORD.unpack(credit.payload)[0]) == (0, 80_000)


def test_who_leaves_replies_lying_gets_no_credit_until_it_takes_them(make_peer: Any) -> None:
    limits = Limits(stream_window=100_000, connection_window=100_000, unsent_stream=500, unsent_connection=500)
    peer = make_peer(limits=limits, settings={f.SETTINGS_INITIAL_WINDOW_SIZE: 0})
    stream = peer.open("/t/Sink")
    peer.calls[0].call.send(bytes(995))
    for _ in range(6):
        peer.message(stream, bytes(9_995))
    assert [frame.kind for frame in peer.take()] == ["HEADERS"]
    peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(499))
    assert [frame.kind for frame in peer.take()] == ["DATA"]
    peer.frame(f.WINDOW_UPDATE, 0, stream, WORD.pack(1))
    credits = [
        (frame.stream_id, WORD.unpack(frame.payload)[0]) for frame in peer.take() if frame.kind == "WINDOW_UPDATE"
    ]
    late = [(frame.stream_id, WORD.unpack(frame.payload)[0]) for frame in peer.take() if frame.kind == "WINDOW_UPDATE"]
    assert sorted(credits + late) == [(0, 60_000), (stream, 60_000)]


def test_credit_that_waited_for_a_full_socket_comes_with_the_last_reply(make_peer: Any) -> None:
    """The peer's windows are wide open and its credit is used up: it has no reason to send anything first."""
    limits = Limits(stream_window=200_000, connection_window=100_000, unsent_connection=0)
    peer = make_peer(limits=limits)
    stream = peer.open()
    peer.take()
    peer.connection.outbox.set_writable(False)
    for _ in range(11):
        peer.message(stream, bytes(4_995))
    assert [frame.kind for frame in peer.take()] == ["HEADERS"]  # no reply may leave, and no credit is given
    peer.connection.outbox.set_writable(True)
    out = peer.take()
    assert sum(size for _, size in data_frames(out)) == 55_000
    assert [(frame.stream_id, WORD.unpack(frame.payload)[0]) for frame in out if frame.kind == "WINDOW_UPDATE"] == [
        (0, 55_000)
    ]


def test_no_credit_for_a_stream_that_will_send_no_more(make_peer: Any) -> None:
    peer = make_peer(limits=Limits(stream_window=65_535, connection_window=1 << 20))
    stream = peer.open("/t/Sink")
    for _ in range(3):
        peer.message(stream, bytes(10_000))
    peer.message(stream, bytes(10_000), end=True)
    assert peer.take() == []


def test_settings_are_acknowledged_in_order_and_said_first(make_peer: Any) -> None:
    peer = make_peer(greet=False, limits=Limits(concurrent_streams=77))
    settings, credit = peer.take()
    assert dict(struct.iter_unpack("!HI", settings.payload)) == {3: 77, 4: 1 << 20, 5: 16_384, 6: 65_536}
    assert WORD.unpack(credit.payload)[0] == (64 << 20) - 65_535
    peer.send(f.PREFACE + f.settings({}))
    assert [(frame.kind, frame.flags) for frame in peer.take()] == [("SETTINGS", f.ACK)]


def test_drain_in_two_steps(peer: Any) -> None:
    first = peer.open()
    peer.take()
    peer.connection.drain()
    peer.connection.drain()
    assert peer.wakes == 1
    goaway, ping = peer.take()
    assert goaway.payload == WORD.pack(2**31 - 1) + bytes(4)
    crossing = peer.open()  # sent before the peer heard of it
    peer.frame(f.PING, f.ACK, 0, ping.payload)
    behind = peer.open()  # opened before that too, but written after the answer, as grpcio does
    peer.frame(f.PING, f.ACK, 0, ping.payload)
    assert peer.take() == []
    *gone, timer = peer.timers
    assert all(each.cancelled for each in gone)
    timer.ring()
    (goaway,) = peer.take()
    assert goaway.payload == WORD.pack(behind) + bytes(4)
    late = peer.open()
    (reset,) = peer.take()
    assert (reset.stream_id, reset.code) == (late, "REFUSED_STREAM")
    for stream in (first, crossing, behind):
        assert not peer.connection.over
        peer.message(stream, b"x", end=True)
    for recorder in peer.calls:
        recorder.call.finish()
    assert peer.connection.over
    peer.take()
    assert [call.reasons for call in peer.calls] == [[CloseReason.FINISHED]] * 3


def test_an_answer_to_a_drain_that_nobody_began_means_nothing(peer: Any) -> None:
    peer.frame(f.PING, f.ACK, 0, b"draining")
    assert peer.timers == []
    peer.open()
    assert peer.take() == []
    assert len(peer.calls) == 1


def test_drain_when_the_peer_does_not_answer_pings(peer: Any) -> None:
    peer.connection.drain()
    (timer,) = peer.timers
    timer.ring()
    peer.connection.seal()
    assert [frame.kind for frame in peer.take()] == ["GOAWAY", "PING", "GOAWAY"]
    assert peer.connection.over
    assert timer.cancelled


def test_a_drain_ends_with_the_connection(peer: Any) -> None:
    peer.connection.drain()
    peer.connection.lost()
    assert [timer.cancelled for timer in peer.timers] == [True]


def test_the_end_of_the_server(peer: Any) -> None:
    peer.open()
    peer.connection.terminate()
    goaway, status, reset = peer.take()
    assert (goaway.kind, goaway.code, reset.kind) == ("GOAWAY", "NO_ERROR", "RST_STREAM")
    assert peer.headers(status)["grpc-status"] == "14"
    assert peer.calls[0].reasons == [CloseReason.ABORTED]
    assert peer.connection.over
