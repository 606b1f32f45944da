"""Free ports: really free, never those that the kernel gives to others."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from epp.demo import ports
from epp.demo.ports import free_ports, free_ports_in_a_row


def test_they_differ_and_can_be_bound() -> None:
    found = free_ports(50)
    assert len(set(found)) == 50
    with ExitStack() as stack:
        for port in found:
            stack.enter_context(socket.create_server(("0.0.0.0", port)))


def test_none_is_one_that_the_kernel_gives_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = server.getsockname()[1]
    assert all(port < given for port in free_ports(200))


def test_a_port_in_use_on_whatever_address_is_passed_over() -> None:
    (wanted,) = free_ports(1, rng=Random(7))
    with socket.create_server(("127.0.0.1", wanted)):
        (other,) = free_ports(1, rng=Random(7))
    assert other != wanted


def test_neighbours_are_all_free() -> None:
    first = free_ports_in_a_row(3, rng=Random(3))
    with socket.create_server(("127.0.0.1", first + 1)):
        assert free_ports_in_a_row(3, rng=Random(3)) not in (first - 1, first, first + 1)


def test_no_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_ATTEMPTS", 0)
    with pytest.raises(OSError, match="no 2 free ports in a row"):
        free_ports_in_a_row(2)


@pytest.mark.parametrize("content", [None, "", "words"])
def test_a_kernel_that_does_not_tell_its_range(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "range"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(ports, "_EPHEMERAL", file)
    assert 10_000 <= free_ports(1)[0] < 32_768
