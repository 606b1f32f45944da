"""Round-trip times from the kernel."""

import socket
from typing import Any

import pytest

from epp.datalayer import tcp_info
from epp.datalayer.tcp_info import round_trip_time


def test_a_loopback_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        measured = round_trip_time(client)
        assert measured is not None
        assert 0 < measured < 1


def test_sockets_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert round_trip_time(datagrams) is None
    with socket.socket() as unconnected:
        assert round_trip_time(unconnected) is None
        monkeypatch.setattr(tcp_info, "_TCP_INFO", None)
        assert round_trip_time(unconnected) is None


def test_an_older_kernel_tells_less() -> None:
    class OldKernel:
        def getsockopt(self, level: int, option: int, size: int) -> bytes:
            return b"\0" * 104

    old: Any = OldKernel()
    assert round_trip_time(old) is None
