"""What Linux says a process uses: CPU time to the nanosecond, memory."""

from __future__ import annotations

import os
import re
from pathlib import Path

PROC = Path("/proc")


def cpu_seconds(pid: int, proc: Path = PROC) -> float:
    """Time on CPU of all living threads of a process, from `schedstat`. ProcessLookupError: there is no such process.

    Not `/proc/PID/stat`, which counts in ticks of 10 ms and charges a whole tick to whoever is running at its end.
    A thread that ends takes its time with it: measure processes whose threads stay.
    """
    nanoseconds = 0
    try:
        threads = os.listdir(proc / str(pid) / "task")
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    for thread in threads:
        try:
            text = (proc / str(pid) / "task" / thread / "schedstat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since the listing
        nanoseconds += int(text.split()[0])
    return nanoseconds * 1e-9


def resident_bytes(pid: int, proc: Path = PROC) -> int:
    """Resident set size of a process. ProcessLookupError: there is no such process."""
    try:
        status = (proc / str(pid) / "status").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"process {pid} has ended")
    return int(found[1]) * 1024
