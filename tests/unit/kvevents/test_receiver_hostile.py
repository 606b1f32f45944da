"""Publishers in processes of their own that die, stop, flood and send garbage: nobody else notices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.procfs import resident_bytes
from epp.demo.ports import free_ports
from epp.kvevents.settings import Publisher

_SCRIPT = Path(__file__).with_name("publisher_process.py")
_BAD = "10.0.0.66:8000"
_GOOD = "10.0.0.1:8000"


class Processes:
    def __init__(self) -> None:
        self.running: list[subprocess.Popen[str]] = []

    def start(self, mode: str, ports: tuple[int, int] | None = None) -> tuple[subprocess.Popen[str], tuple[int, int]]:
        if ports is None:
            first, second = free_ports(2)
            ports = first, second
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), str(ports[0]), str(ports[1]), mode], stdout=subprocess.PIPE, text=True
        )
        self.running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process, ports


@pytest.fixture
def processes() -> Iterator[Processes]:
    every = Processes()
    yield every
    for process in every.running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _publisher(ports: tuple[int, int], *, replay: bool = True) -> Publisher:
    return Publisher(f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}" if replay else None)


async def test_kill_9_and_a_restart(stage: Any, processes: Processes) -> None:
    process, ports = processes.start("steady")
    receiver = stage.receiver(reconnect_limit=0.5)
    receiver.add(_GOOD, [_publisher(ports)])
    await stage.until(lambda: len(stage.ledger.held.get(_GOOD, ())) > 30)
    before = max(stage.ledger.held[_GOOD])
    process.send_signal(signal.SIGKILL)
    process.wait()
    await stage.until(lambda: receiver.stats().connected == 0)
    processes.start("steady", ports)
    await stage.until(lambda: receiver.stats().restarts == 1)
    await stage.until(lambda: len(stage.ledger.held.get(_GOOD, ())) > 10)
    # Without a hole from 0 on: what the new process published before we were back came by replay.
    held = stage.ledger.held[_GOOD]
    assert held == set(range(max(held) + 1))
    assert before > 25
    assert receiver.stats().lost == 0


async def test_a_process_that_stops_is_caught_up_with(stage: Any, processes: Processes) -> None:
    process, ports = processes.start("steady")
    receiver = stage.receiver(heartbeat=0.2, heartbeat_timeout=0.4, reconnect_limit=0.5)
    receiver.add(_BAD, [_publisher(ports)])
    other = await stage.follow(stage.server(replay=False), _GOOD)
    await stage.until(lambda: len(stage.ledger.held.get(_BAD, ())) > 5)
    process.send_signal(signal.SIGSTOP)
    await stage.until(lambda: receiver.stats().connected == 0)  # the heartbeat notices
    stage.servers[0].publish(store=[1])
    await stage.until(lambda: stage.ledger.held.get(_GOOD) == {1})
    stopped_at = max(stage.ledger.held[_BAD])
    process.send_signal(signal.SIGCONT)
    await stage.until(lambda: max(stage.ledger.held[_BAD]) > stopped_at + 10)
    held = stage.ledger.held[_BAD]
    assert held == set(range(max(held) + 1))
    assert receiver.stats().restarts == 0
    assert other.stats().gaps == 0


@pytest.mark.parametrize("mode", ["flood", "garbage", "wide"])
async def test_an_endless_flood_harms_nobody(stage: Any, processes: Processes, mode: str) -> None:
    floods = [processes.start(mode)[1] for _ in range(2)]
    receiver = stage.receiver()
    for index, ports in enumerate(floods):
        receiver.add(f"10.0.0.{66 + index}:8000", [_publisher(ports, replay=False)])
    good = stage.server(replay=False)
    receiver.add(_GOOD, [good.publisher])
    await stage.until(lambda: receiver.stats().connected == 3 and receiver.stats().messages > 5)

    waits: list[float] = []
    delivered = 0
    memory_at_first = 0
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:
        good.publish(store=[delivered])
        delivered += 1
        sent = time.monotonic()
        await asyncio.sleep(0)  # what a request that has just arrived waits for
        waits.append(time.monotonic() - sent)
        await asyncio.sleep(0.01)
        if not memory_at_first and time.monotonic() > deadline - 2.0:
            memory_at_first = resident_bytes(os.getpid())
    grown = resident_bytes(os.getpid()) - memory_at_first

    # The first few may be sent before the subscription is there; all others arrive, in the middle of the flood.
    await stage.until(lambda: delivered - 1 in stage.ledger.held.get(_GOOD, ()))
    state = next(state for state in receiver.states() if state.endpoint == _GOOD)
    assert state.gaps == 0
    assert len(stage.ledger.held[_GOOD]) > delivered // 2
    # Half of the turns are taken within a few slices, however busy the machine is.
    assert sorted(waits)[len(waits) // 2] < 0.3
    assert grown < 256 << 20
    stats = receiver.stats()
    if mode == "garbage":
        assert stats.decode.errors["batch"] > 5
    else:
        assert stats.decode.blocks_stored > 10
    os.kill(processes.running[0].pid, signal.SIGKILL)
    receiver.remove(_BAD)
    assert _BAD not in stage.ledger.held
