"""Who is at the other end of a port, told apart by its first bytes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from epp.kvevents.zmtp import find_peer, split_address


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server that treats one connection so."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        thread.join()
        listening.close()


@pytest.mark.parametrize(("kind", "name"), [(zmq.PUB, "PUB"), (zmq.ROUTER, "ROUTER")])
def test_a_zmq_socket_names_its_type(kind: int, name: str) -> None:
    with zmq.Context() as context, context.socket(kind) as publisher:
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        peer = find_peer(f"tcp://127.0.0.1:{port}", 5.0)
        assert (peer.reach, peer.socket_type) == ("zmq", name)


def test_something_else_that_answers() -> None:
    with answering(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")) as address:
        peer = find_peer(address, 5.0)
    assert (peer.reach, peer.said) == ("foreign", b"HTTP/1.1 4")


def test_something_that_says_nothing() -> None:
    held = threading.Event()
    with answering(lambda connection: held.wait(20) and None) as address:
        assert find_peer(address, 0.1).reach == "silent"
        held.set()


def test_something_that_hangs_up() -> None:
    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.recv(1)

    with answering(reset) as address:
        assert find_peer(address, 5.0).reach in ("foreign", "silent")


@pytest.mark.parametrize("ready", [b"", b"\x04", b"\x04\x06\x05READY", b"\x04\x13\x05READY\x0bSocket-Type\0"])
def test_a_greeting_without_a_type(ready: bytes) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"\xff" + bytes(8) + b"\x7f" + bytes(54) + ready)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1000):
            pass

    with answering(greet) as address:
        peer = find_peer(address, 1.0)
    assert (peer.reach, peer.socket_type) == ("zmq", "")


def test_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert find_peer(f"127.0.0.1:{port}", 1.0).reach == "refused"
    assert find_peer("tcp://no-such-host.invalid:5557", 1.0).reach == "unresolved"


def test_nobody_takes_the_call() -> None:
    """A listener whose queue is full lets further connections wait."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        try:
            assert find_peer(f"127.0.0.1:{listening.getsockname()[1]}", 0.2).reach == "timeout"
        finally:
            for each in waiting:
                each.close()


@pytest.mark.parametrize(
    ("address", "parts"),
    [("tcp://a:1", ("a", 1)), ("a:65535", ("a", 65535)), ("tcp://[::1]:5557", ("::1", 5557))],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "a", ":1", "a:", "a:x", "a:0", "a:65536", "tcp://a/b:1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not an address of the form"):
        split_address(address)
