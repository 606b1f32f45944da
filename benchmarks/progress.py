"""Says what is going on while a long measurement runs: one line that is overwritten on a terminal, lines in a pipe."""

from __future__ import annotations

import time
from typing import IO


class Progress:
    """`progress("text")`; `clear()` before anything else is printed to the terminal."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._began = time.monotonic()
        self._width = 0

    def __call__(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        line = f"[{minutes:02}:{seconds:02}] {text}"
        if self._terminal:
            self._out.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._out.write(line + "\n")
        self._out.flush()

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self._terminal and self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._out.flush()
            self._width = 0
