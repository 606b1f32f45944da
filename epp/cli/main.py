"""The command `epp`: finds the subcommand and hands it its arguments. Nothing else is imported before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from epp.config.errors import did_you_mean


class Command(NamedTuple):
    """A subcommand: `target` is `module:function`, imported when it is called."""

    target: str
    summary: str


COMMANDS = {
    "serve": Command("epp.cli.serve:run", "serve ext_proc: pick an endpoint for every request"),
    "check": Command("epp.cli.check:run", "validate a configuration and print what it means"),
    "plugins": Command("epp.cli.plugins:run", "list plugin types, document one, or write a new one"),
    "kv": Command("epp.cli.kv:run", "print or diagnose the KV cache events of a model server"),
    "demo": Command("epp.cli.demo:run", "a real Envoy, the picker and simulated servers on this machine"),
    "sim": Command("epp.cli.sim:run", "simulated model servers"),
    "version": Command("epp.cli.main:version", "print the version"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status. 2: the command line cannot be understood."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) > 1 and arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("--version", "-V"):
        name = "version"
    command = COMMANDS.get(name)
    if command is None:
        print(f"epp: no command {name!r} ({did_you_mean(name, COMMANDS)})", file=sys.stderr)
        return 2
    module, _, function = command.target.partition(":")
    run: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    try:
        return run(rest)
    except BrokenPipeError:  # `epp plugins | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def version(argv: Sequence[str]) -> int:
    """Print the version of the installed package."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: epp version\n\nPrint the version of the installed package.")
        return 0
    if argv:
        print(f"epp version takes no arguments, got {' '.join(argv)}", file=sys.stderr)
        return 2
    from importlib.metadata import version as installed

    print(f"epp {installed('epp')}")
    return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: epp COMMAND [ARGUMENTS]", "", *lines, "", "`epp COMMAND --help` tells about the arguments."]
    )


if __name__ == "__main__":
    sys.exit(main())
