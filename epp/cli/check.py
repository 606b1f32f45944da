"""`epp check FILE`: does this configuration work, and what does it mean in full?"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epp.api.endpoints import EndpointTable
from epp.api.errors import ConfigError
from epp.cli.output import print_json, yaml_lines
from epp.config.errors import LocatedError
from epp.config.load import load, load_file
from epp.registry.build import build
from epp.registry.catalog import Catalog
from epp.registry.contexts import contexts
from epp.registry.effective import effective
from epp.telemetry.metrics import Registry


def run(argv: list[str]) -> int:
    """0: the picker would start with it. 1: it would not."""
    parser = argparse.ArgumentParser(
        prog="epp check",
        description="Validate a configuration as `epp serve` does, and print it with everything that is filled in. "
        "Nothing is started or connected to.",
    )
    parser.add_argument("file", metavar="FILE", help="an EndpointPickerConfig, - for standard input")
    parser.add_argument("--output", choices=("text", "json"), default="text", help="text (YAML) or json")
    parser.add_argument(
        "--allow-experimental-plugins", action="store_true", help="accept plugins of stability alpha, as `epp serve`"
    )
    options = parser.parse_args(argv)
    try:
        tree, defaults, warnings = examine(options.file, allow_experimental=options.allow_experimental_plugins)
    except ConfigError as error:
        _print_error(error, options.file, as_json=options.output == "json")
        return 1
    if options.output == "json":
        print_json({"valid": True, "warnings": warnings, "defaults": defaults, "config": tree})
        return 0
    for line in yaml_lines(tree, frozenset(defaults)):
        print(line)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.file}: valid, {len(warnings)} warning{'' if len(warnings) == 1 else 's'}", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What plugins warn of in the log while they are built. It is part of the answer, so it is not logged."""
    log = logging.getLogger("epp")
    handler = _Listener(logging.WARNING)
    before = log.propagate, log.level
    log.propagate = False
    log.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield handler.said
    finally:
        log.removeHandler(handler)
        log.propagate = before[0]
        log.setLevel(before[1])


class _Listener(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def examine(file: str, *, allow_experimental: bool) -> tuple[dict[str, Any], list[str], list[str]]:
    """What a configuration file means in full, which paths of that are defaults, and warnings; - for standard input.

    Raises `ConfigError` when the picker would not start with it.
    """
    if file == "-":
        loaded, directory = load(sys.stdin.read(), "standard input"), None
    else:
        loaded, directory = load_file(Path(file)), Path(file).resolve().parent
    factory = contexts(table=EndpointTable(), clock=time.monotonic, rng=random.Random(0), metrics=Registry())
    with _heard() as said:
        assembly = build(
            loaded.config, Catalog.load(directory), context_factory=factory, allow_experimental=allow_experimental
        )
    tree, defaults = effective(assembly)
    return tree, defaults, [*loaded.warnings, *assembly.warnings, *said]


def _print_error(error: ConfigError, file: str, *, as_json: bool) -> None:
    if not as_json:
        print(f"error: {error}", file=sys.stderr)
        return
    print_json(
        {
            "valid": False,
            "error": {
                "message": error.message,
                "path": error.path,
                "line": error.line if isinstance(error, LocatedError) else 0,
                "file": file,
                "fix": error.fix,
            },
        }
    )
