"""YAML or JSON text as plain values that remember their lines.

The YAML is composed, not constructed, so every value has a mark; tags that would build objects are refused. JSON is
read by the same code, being a subset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from epp.config.errors import LocatedError

MAX_BYTES = 4 * 1024 * 1024
"""A configuration is written by people: a larger file is a mistake (a wrong mount), not a configuration."""

MAX_VALUES = 200_000
"""Values after expanding aliases, so that a nest of aliases cannot fill the memory."""

MAX_DEPTH = 100

_TAG = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp")
_JSON_NUMBER = re.compile(r"-?\d+(\.\d+)?[eE][+-]?\d+")


@dataclass(frozen=True, slots=True)
class Document:
    """`value` are the plain values (null entries of mappings left out, as Go treats them); `lines`: path -> line."""

    value: Any
    source: str = ""
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int:
        """The line of a path, or of the closest ancestor that has one. 0: the path is not from the file."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = parent(path)
        return self.lines.get("", 0)

    def note(self, message: str, path: str) -> str:
        """A warning about a path, in the form of an error."""
        return str(self.error(message, path=path))

    def error(self, message: str, *, path: str = "", fix: str = "") -> LocatedError:
        """An error at a path of this document."""
        return LocatedError(message, path=path, fix=fix, source=self.source, line=self.line(path))


def parent(path: str) -> str:
    """The path of the containing mapping or list: `a.b[2]` -> `a.b` -> `a` -> empty."""
    return path[: max(path.rfind("."), path.rfind("["), 0)]


def child(path: str, key: str | int) -> str:
    """The path of an entry: `a` and `b` -> `a.b`, `a` and 2 -> `a[2]`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def read(text: str, source: str = "") -> Document:
    """The single document in the text. Raises `LocatedError` on anything that is not one well-formed mapping."""
    if len(text) > MAX_BYTES:
        raise LocatedError(
            f"the configuration is {len(text)} characters long, more than {MAX_BYTES}",
            source=source,
            fix="check that this is the right file",
        )
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return Document({}, source)
        reader = _Reader(source)
        value = reader.plain(root, "", 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise LocatedError(
            f"not well-formed YAML: {error.problem or error.context}"
            + (f" at column {mark.column + 1}" if mark is not None else ""),
            source=source,
            line=mark.line + 1 if mark is not None else 0,
        ) from error
    except yaml.YAMLError as error:
        raise LocatedError(f"not well-formed YAML: {error}", source=source) from error
    except RecursionError as error:
        raise LocatedError(f"nested more than {MAX_DEPTH} levels deep", source=source) from error
    document = Document(value, source, reader.lines)
    if not isinstance(value, dict):
        raise document.error(
            f"expected a mapping with `apiVersion` and `kind`, got {type(value).__name__}",
            fix="start the file with `apiVersion: llm-d.ai/v1alpha1`",
        )
    return document


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._scalars = yaml.SafeLoader("")
        self.lines: dict[str, int] = {}
        self._values = 0

    def plain(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._values += 1
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            what = f"{MAX_DEPTH} levels deep" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            raise self._error(f"more than {what} (aliases expanded)", path, line, "simplify it")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, child(path, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path, line)

    def _scalar(self, node: yaml.Node, path: str, line: int) -> Any:
        """As YAML 1.2 and JSON read it: `1e3` is a number, dates and `12:30` are texts."""
        kind = node.tag.removeprefix(_TAG)
        if kind not in _SCALARS:
            raise self._error(f"the tag `{node.tag}` is not understood", path, line, "remove it")
        if kind == "timestamp" or (kind in ("int", "float") and ":" in node.value):
            return node.value
        if kind == "str":
            plain = getattr(node, "style", None) is None
            return float(node.value) if plain and _JSON_NUMBER.fullmatch(node.value) else self._text(node, path, line)
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self._error(f"cannot read {node.value!r}: {error}", path, line, "quote it") from error

    def _text(self, node: yaml.Node, path: str, line: int) -> str:
        """JSON may write a character beyond U+FFFF as two escapes, which YAML leaves apart."""
        text: str = node.value
        if text.isascii():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._error("half a character (a lone surrogate)", path, line, "write it out") from error

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error("a key must be a plain name", path, line, "write `name: value`")
            key = self._text(key_node, path, line)
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise self._error("merge keys (`<<`) are not understood", path, line, "write the entries out")
            if key in seen:
                raise self._error(
                    f"the key `{key}` is given twice, first on line {seen[key]}", child(path, key), line, "remove one"
                )
            seen[key] = line
            self.lines[child(path, key)] = line
            value = self.plain(value_node, child(path, key), depth + 1)
            if value is not None:
                result[key] = value
        return result

    def _error(self, message: str, path: str, line: int, fix: str) -> LocatedError:
        return LocatedError(message, path=path, fix=fix, source=self._source, line=line)
