"""How commands print: tables on a terminal, plain columns in a pipe, JSON when asked."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./:@%+-]*")
_RESERVED = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], out: IO[str] | None = None) -> None:
    """A rich table on a terminal; in a pipe one line per row with aligned columns, easy to cut and grep."""
    stream = sys.stdout if out is None else out
    lines = [list(row) for row in rows]
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table(title=title, title_justify="left", show_lines=False)
        for index, name in enumerate(header):
            drawn.add_column(name, no_wrap=index == 0)
        for line in lines:
            drawn.add_row(*[cell.replace("[", r"\[") for cell in line])
        Console(file=stream).print(drawn)
        return
    print(f"{title}:", file=stream)
    widths = [max(len(line[index]) for line in [list(header), *lines]) for index in range(len(header))]
    for line in [[name.upper() for name in header], *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=stream)


def print_json(value: Any, out: IO[str] | None = None) -> None:
    """Indented JSON."""
    json.dump(value, sys.stdout if out is None else out, indent=2, ensure_ascii=False)
    print(file=sys.stdout if out is None else out)


def yaml_lines(tree: Any, marked: frozenset[str], mark: str = "# (default)") -> list[str]:
    """Plain data as YAML, valid as a configuration. Lines of the `marked` paths and of all below get a comment."""
    return [f"{text}  {mark}" if filled else text for text, filled in _lines(tree, "", 0, marked, False)]


def _lines(value: Any, path: str, indent: int, marked: frozenset[str], inside: bool) -> list[tuple[str, bool]]:
    """(text, whether it is marked) of each line."""
    pad = " " * indent
    lines: list[tuple[str, bool]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        listed = isinstance(value, list)
        here = f"{path}[{key}]" if listed else f"{path}.{key}" if path else str(key)
        filled = inside or here in marked
        head = f"{pad}-" if listed else f"{pad}{_scalar(str(key))}:"
        if not (isinstance(entry, dict | list) and entry):
            lines.append((f"{head} {_scalar(entry)}", filled))
            continue
        below = _lines(entry, here, indent + 2, marked, filled)
        if listed:
            below[0] = (f"{head} {below[0][0].lstrip()}", below[0][1])
        else:
            lines.append((head, filled))
        lines += below
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        number = re.fullmatch(r"[-+.0-9][0-9._eE+:-]*|0[xo].*", value)
        if number is None and not value.endswith(":"):
            return value
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}[str(value)]
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
