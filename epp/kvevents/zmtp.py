"""Who is at the other end of a TCP port: the first bytes of ZMTP 3 (rfc.zeromq.org/spec/23), spoken by hand.

libzmq retries for ever and in silence when the other end is not ZMQ, or is a socket of a type that does not fit. To
tell a person which of these it is, one must look at the greeting and at the type that the peer names in READY.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_LONGEST_COMMAND = 255

Reach = Literal["zmq", "refused", "timeout", "unresolved", "foreign", "silent"]


@dataclass(frozen=True, slots=True)
class Peer:
    """`reach`: "foreign": something answers that is not ZMQ, `said` holds its first bytes; "silent": it accepts the
    connection and says nothing. `socket_type`: "PUB", "ROUTER", ...; empty when the peer did not tell."""

    reach: Reach
    socket_type: str = ""
    said: bytes = b""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://HOST:PORT` or `HOST:PORT`. ValueError for anything else."""
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not colon or not host or not port.isdigit() or "/" in host or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not an address of the form tcp://HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def find_peer(address: str, timeout: float, socket_type: str = "SUB") -> Peer:
    """Connect, greet as a socket of `socket_type`, and see who answers. Blocks for `timeout` seconds per step."""
    try:
        connection = socket.create_connection(split_address(address), timeout)
    except socket.gaierror:
        return Peer("unresolved")
    except TimeoutError:
        return Peer("timeout")
    except OSError:
        return Peer("refused")
    said = b""
    with connection:
        try:
            connection.sendall(_GREETING)
            said = _read(connection, 10)
            if not said:
                return Peer("silent")
            if len(said) < 10 or said[0] != 0xFF or said[9] != 0x7F:
                return Peer("foreign", said=said)
            _read(connection, 54)
            name = b"\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type.encode()
            body = b"\x05READY" + name
            connection.sendall(bytes((0x04, len(body))) + body)
            head = _read(connection, 2)
            command = _read(connection, head[1]) if len(head) == 2 else b""
        except OSError:  # it hung up on our greeting
            return Peer("foreign", said=said)
    return Peer("zmq", _socket_type(command), said)


def _read(connection: socket.socket, count: int) -> bytes:
    """`count` bytes, or what came before the connection ended or fell silent."""
    data = b""
    while len(data) < min(count, _LONGEST_COMMAND):
        try:
            chunk = connection.recv(count - len(data))
        except TimeoutError:
            break
        if not chunk:
            break
        data += chunk
    return data


def _socket_type(ready: bytes) -> str:
    _, found, rest = ready.partition(b"\x0bSocket-Type")
    if not found or len(rest) < 4:
        return ""
    return rest[4 : 4 + int.from_bytes(rest[:4], "big")].decode("ascii", "replace")
