"""What is read from /proc is what the process uses."""

import os
import time
from pathlib import Path

import pytest

from benchmarks.bench import Bench, Scale
from benchmarks.processes import child
from benchmarks.procfs import cpu_seconds, resident_bytes


def fake(proc: Path, threads: dict[str, str], status: str = "Name:\tx\nVmRSS:\t  2048 kB\n") -> None:
    for thread, text in threads.items():
        folder = proc / "7" / "task" / thread
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(text)
    (proc / "7" / "status").write_text(status)


def test_all_threads_count(tmp_path: Path) -> None:
    fake(tmp_path, {"7": "1500000000 3 4\n", "8": "500000000 1 1\n"})
    assert cpu_seconds(7, tmp_path) == 2.0


def test_a_thread_that_ended_since_the_listing_is_left_out(tmp_path: Path) -> None:
    fake(tmp_path, {"7": "1000000000 3 4\n"})
    (tmp_path / "7" / "task" / "9").mkdir()
    assert cpu_seconds(7, tmp_path) == 1.0


def test_resident_memory_is_in_bytes(tmp_path: Path) -> None:
    fake(tmp_path, {"7": "0 0 0"})
    assert resident_bytes(7, tmp_path) == 2 * 2**20


def test_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError, match="no process 7"):
        cpu_seconds(7, tmp_path)
    with pytest.raises(ProcessLookupError, match="no process 7"):
        resident_bytes(7, tmp_path)
    fake(tmp_path, {"7": "0 0 0"}, status="Name:\tx\nState:\tZ (zombie)\n")
    with pytest.raises(ProcessLookupError, match="has ended"):
        resident_bytes(7, tmp_path)


def test_our_own_time_grows_as_the_clock_of_the_process_does() -> None:
    before, clock = cpu_seconds(os.getpid()), time.process_time()
    sum(range(2_000_000))
    spent, ticked = cpu_seconds(os.getpid()) - before, time.process_time() - clock
    # schedstat is brought up to date at scheduler ticks, every 4 ms or so.
    assert spent == pytest.approx(ticked, abs=0.02)
    assert resident_bytes(os.getpid()) > 2**20


async def test_a_sleeping_process_keeps_no_core_busy(tmp_path: Path) -> None:
    bench = Bench(Scale.SMOKE, tmp_path, lambda text: None)
    async with child("-c", "import time; print(flush=True); time.sleep(60)", log=tmp_path / "log") as (process, _):
        assert await bench.cores(process.pid, 0.2) < 0.5
