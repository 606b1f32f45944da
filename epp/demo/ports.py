"""Free TCP ports on loopback, for processes that must be told theirs."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """`count` different ports that nothing listens on right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
