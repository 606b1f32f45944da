"""Looks at one publisher from outside, for the diagnosis: who listens, what comes, does the replay answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import zmq

from epp.api.plugin import Clock
from epp.kvevents.decoding import MAX_MESSAGE_BYTES, Batch, Decoder
from epp.kvevents.events import BlockStored
from epp.kvevents.replay import END, ReplayConversation, read_answer
from epp.kvevents.settings import ReceiverSettings
from epp.kvevents.zmtp import Peer, find_peer

_MAX_TOPICS = 20
_ENOUGH = 10_000  # messages that a listener looks at


@dataclass(frozen=True, slots=True)
class Message:
    """One live message. `batch` None: it could not be read."""

    topic: str
    seq: int
    batch: Batch | None


@dataclass(slots=True)
class Heard:
    """What came in a while. `gaps`: sequence numbers that were left out. `connections`: with `bind`, who connected."""

    messages: int = 0
    topics: dict[str, int] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)
    block_sizes: set[int] = field(default_factory=set)
    gaps: int = 0
    unreadable: int = 0
    bad_frames: int = 0
    connections: int = 0
    decode_errors: dict[str, int] = field(default_factory=dict)
    skipped: dict[tuple[str, str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replayed:
    """`answered`: the end mark came, after `messages`."""

    peer: Peer
    answered: bool = False
    messages: int = 0


def messages(
    address: str, *, topic: str, bind: bool, clock: Clock, seconds: float | None, heard: Heard, decoder: Decoder
) -> Iterator[Message]:
    """Live messages whose topic begins with `topic`; ends after `seconds`, None: never. Blocks. ZMQError: bad address.

    `heard` counts along.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    monitor: zmq.Socket[bytes] = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED)
    try:
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        if bind:
            socket.bind(address)
        else:
            socket.connect(address)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        last: dict[tuple[str, int], int] = {}
        deadline = None if seconds is None else clock() + seconds
        while deadline is None or clock() < deadline:
            readable = dict(poller.poll(None if deadline is None else max(0, int((deadline - clock()) * 1000)) + 1))
            if monitor in readable:
                monitor.recv_multipart()
                heard.connections += 1
            if socket not in readable:
                continue
            frames = socket.recv_multipart()
            if len(frames) != 3 or len(frames[1]) != 8:
                heard.bad_frames += 1
                continue
            name = frames[0][:256].decode("utf-8", "replace")
            seq = int.from_bytes(frames[1], "big")
            batch = decoder.decode(frames[2])
            rank = 0 if batch is None else batch.rank
            heard.messages += 1
            heard.unreadable += batch is None
            heard.gaps += max(0, seq - last.get((name, rank), seq - 1) - 1)
            if len(last) < _ENOUGH:
                last[name, rank] = seq
            if name in heard.topics or len(heard.topics) < _MAX_TOPICS:
                heard.topics[name] = heard.topics.get(name, 0) + 1
            yield Message(name, seq, batch)
    finally:
        socket.disable_monitor()
        monitor.close(0)
        socket.close(0)
        context.term()


def listen(address: str, *, bind: bool, clock: Clock, seconds: float, enough: int = 20) -> Heard:
    """What comes, whatever its topic, until `seconds` are over or `enough` messages came."""
    heard, decoder = Heard(), Decoder()
    stream = messages(address, topic="", bind=bind, clock=clock, seconds=seconds, heard=heard, decoder=decoder)
    for message in stream:
        if message.batch is not None:
            heard.ranks.add(message.batch.rank)
            heard.block_sizes.update(e.block_size for e in message.batch.events if isinstance(e, BlockStored))
        if heard.messages >= enough:
            break
    stream.close()  # type: ignore[attr-defined]
    heard.decode_errors, heard.skipped = decoder.stats.errors, decoder.stats.skipped
    return heard


def ask_replay(address: str, *, clock: Clock, seconds: float) -> Replayed:
    """Ask for everything from 0 and count the answers."""
    peer = find_peer(address, min(seconds, 2.0), "DEALER")
    if peer.reach != "zmq":
        return Replayed(peer)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    conversation = ReplayConversation(context, address, ReceiverSettings())
    count = 0
    try:
        conversation.ask(0)
        deadline = clock() + seconds
        while clock() < deadline and count < _ENOUGH:
            if not conversation.socket.poll(max(1, int((deadline - clock()) * 1000))):
                break
            frames = conversation.receive()
            answer = read_answer(frames) if frames else None
            if answer is not None and answer.seq == END:
                return Replayed(peer, True, count)
            count += answer is not None
        return Replayed(peer, count > 0, count)
    finally:
        conversation.close()
        context.term()
