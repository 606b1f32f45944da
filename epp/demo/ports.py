"""Free TCP ports, for processes that must be told theirs.

They lie below the range from which the kernel serves outgoing connections and `bind(0)`: a port that is free now is
then still free when the process that is told of it binds it, though hundreds of connections are made meanwhile.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from random import Random, SystemRandom

_FIRST = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_DEFAULT = 32_768  # Linux; others begin higher
_ATTEMPTS = 1_000


def free_ports(count: int, *, rng: Random | None = None) -> list[int]:
    """`count` different ports that nothing listens on right now, on any address. OSError when there are none."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            ports += _hold(held, 1, rng or SystemRandom())
    return ports


def free_ports_in_a_row(count: int, *, rng: Random | None = None) -> int:
    """The first of `count` neighbouring ports that nothing listens on. OSError when there are none."""
    with ExitStack() as held:
        return _hold(held, count, rng or SystemRandom())[0]


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine right now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a closed connection leaves is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _hold(held: ExitStack, count: int, rng: Random) -> list[int]:
    """Bind `count` neighbouring ports until `held` is left."""
    last = max(_ephemeral_begins(), _FIRST + 2 * count) - count
    for _ in range(_ATTEMPTS):
        first = rng.randrange(_FIRST, last)
        with ExitStack() as attempt:
            try:
                for port in range(first, first + count):
                    attempt.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            held.push(attempt.pop_all())
            return list(range(first, first + count))
    raise OSError(f"no {count} free ports in a row between {_FIRST} and {last + count}")


def _ephemeral_begins() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL_DEFAULT
