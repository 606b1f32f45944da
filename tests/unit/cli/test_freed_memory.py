"""In processes of their own: what an allocator is told cannot be taken back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Faults of 20 rounds of what a long prompt allocates, before and after.
ROUNDS = """
import os, resource
from epp.cli.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        buffers = [bytearray(450_000) for _ in range(4)]
        del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
told = keep_freed_memory(os.environ)
faults()
print(before, told, faults())
"""


def measured(**environ: str) -> tuple[int, bool, int]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ROUNDS]
    out = subprocess.run(command, env=kept | environ, capture_output=True, text=True, check=True, timeout=60).stdout
    before, told, after = out.split()
    return int(before), told == "True", int(after)


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc's own behaviour")
def test_long_prompts_get_the_memory_of_those_before_them() -> None:
    before, told, after = measured()
    assert told
    assert before > 20 * 4 * 50  # glibc alone: nearly every page of every buffer, every time
    assert after < 20


def test_what_the_environment_says_stays() -> None:
    assert not measured(MALLOC_TRIM_THRESHOLD_="131072")[1]
    assert not measured(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[1]
