"""`epp plugins new scorer my-scorer`: a package that installs, is found, and passes its own test."""

from __future__ import annotations

import argparse
import importlib.resources
import keyword
import re
import string
import sys
from pathlib import Path

from epp.api.errors import ConfigError
from epp.registry.catalog import Catalog

ROLES = ("scorer", "filter", "picker", "producer")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_USAGE = """\
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: $type
"""


def run(argv: list[str]) -> int:
    """0: written. 1: the directory or the type is there already."""
    parser = argparse.ArgumentParser(
        prog="epp plugins new", description="Write a plugin package to start from, with a test that passes."
    )
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("name", type=_plugin_type, help="the type in the configuration file, such as my-scorer")
    parser.add_argument("--dir", type=Path, default=None, help="where to write; default: a new directory ./NAME")
    options = parser.parse_args(argv)
    try:
        catalog = Catalog.load()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.name in catalog.types():
        origin = catalog.origin(options.name)
        print(
            f"error: `{options.name}` exists already ({origin}), and two packages cannot bring the same type: "
            "use another name",
            file=sys.stderr,
        )
        return 1
    directory: Path = options.dir if options.dir is not None else Path(options.name)
    try:
        written = write(options.role, options.name, directory)
    except FileExistsError as error:
        print(f"error: {error.filename} exists already: give another --dir", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}: give another --dir", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    print(f"\ncd {directory} && python -m pytest    # then: pip install .", file=sys.stderr)
    return 0


def write(role: str, kind: str, directory: Path) -> list[Path]:
    """Write the package of a plugin type; returns the files. Raises FileExistsError instead of overwriting."""
    words = kind.split("-")
    module = "_".join(words)
    values = {
        "type": kind,
        "role": role,
        "Role": role.capitalize(),
        "module": module,
        "package_name": kind,
        "class_name": "".join(word.capitalize() for word in words),
    }
    values["usage"] = "" if role == "producer" else string.Template(_USAGE).substitute(values)
    contents = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        f"{module}.py": f"{role}.py.tmpl",
        f"tests/test_{module}.py": f"{role}_test.py.tmpl",
    }
    templates = importlib.resources.files("epp.cli") / "templates"
    files = {directory / name: string.Template((templates / source).read_text()) for name, source in contents.items()}
    for path in files:
        if path.exists():
            raise FileExistsError(17, "exists", str(path))
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.substitute(values))
    return list(files)


def _plugin_type(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: use lower-case words joined by -, such as my-scorer")
    module = text.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in ("epp", "numpy", "msgspec"):
        raise argparse.ArgumentTypeError(f"{text!r} would hide the Python module {module}: use another name")
    return text
