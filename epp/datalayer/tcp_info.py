"""The round-trip time of a TCP connection as the kernel knows it."""

from __future__ import annotations

import socket
import struct

# struct tcp_info of linux/tcp.h: `tcpi_min_rtt`, microseconds, since Linux 4.6.
_MIN_RTT_OFFSET = 148
_UNKNOWN = 0xFFFFFFFF
_TCP_INFO = getattr(socket, "TCP_INFO", None)


def round_trip_time(sock: socket.socket) -> float | None:
    """Seconds: the least of the last five minutes; None where the kernel does not tell (no Linux, not TCP).

    The least, not the kernel's smoothed `tcpi_rtt`: a server that takes 20 ms to write its metrics page delays the
    acknowledgement of our request by as much, and the smoothed value then measures the server instead of the network.
    """
    if _TCP_INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _MIN_RTT_OFFSET + 4)
    except OSError:
        return None
    if len(info) < _MIN_RTT_OFFSET + 4:
        return None
    (microseconds,) = struct.unpack_from("=I", info, _MIN_RTT_OFFSET)
    return None if microseconds in (0, _UNKNOWN) else microseconds / 1e6
