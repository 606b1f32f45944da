"""Plain values into typed structs: strict keys, and errors that name the path, the line and the likely intention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import msgspec.inspect as mi

from epp.config.document import Document, child
from epp.config.duration import Duration
from epp.config.errors import LocatedError, did_you_mean
from epp.config.quantity import Quantity

T = TypeVar("T")

_WHERE = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`$")
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(?P<name>.*)`$")
_MISSING_FIELD = re.compile(r"^Object missing required field `(?P<name>.*)`$")


def decode(
    value: Any, kind: type[T], document: Document, path: str = "", *, aliases: Mapping[str, str] | None = None
) -> T:
    """`value`, found at `path` of the document, as a `kind`. `aliases`: former top-level names -> today's."""
    if aliases and isinstance(value, dict):
        value = _renamed(value, aliases, document, path)
    try:
        return msgspec.convert(value, kind, dec_hook=_custom)
    except msgspec.ValidationError as error:
        raise _located(error, value, kind, document, path) from error


def fields_of(kind: Any) -> dict[str, mi.Field]:
    """The fields of a struct type by their name in the file; empty for anything else."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    info = mi.type_info(kind)
    return {field.encode_name: field for field in info.fields} if isinstance(info, mi.StructType) else {}


def _custom(kind: type, value: Any) -> Any:
    if kind is Quantity:
        return Quantity.parse(value)
    if kind is Duration:
        return Duration.parse(value)
    parse = getattr(kind, "parse", None)
    if callable(parse):
        return parse(value)
    raise TypeError(
        f"a parameter of type {kind.__name__} cannot be read from YAML: give the type a `parse` classmethod"
    )


def _renamed(value: dict[str, Any], aliases: Mapping[str, str], document: Document, path: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for key, entry in value.items():
        name = aliases.get(key, key)
        if name != key and name in value:
            raise document.error(f"`{key}` is the former name of `{name}`: both are given", path=child(path, key))
        renamed[name] = entry
    return renamed


def _located(error: msgspec.ValidationError, value: Any, kind: type, document: Document, path: str) -> LocatedError:
    text = str(error)
    where = _WHERE.search(text)
    inner = where["path"] if where is not None else ""
    message = text[: where.start()] if where is not None else text
    inner = _with_keys(inner, value, kind)
    full = path + inner if inner.startswith("[") or not path else f"{path}{inner}"
    full = full.lstrip(".")

    unknown = _UNKNOWN_FIELD.match(message)
    if unknown is not None:
        known = fields_of(_kind_at(kind, inner))
        fix = did_you_mean(unknown["name"], known) if known else "remove it: there is nothing to set here"
        return document.error(f"unknown field `{unknown['name']}`", path=child(full, unknown["name"]), fix=fix)
    missing = _MISSING_FIELD.match(message)
    if missing is not None:
        return document.error(f"`{missing['name']}` is missing", path=full, fix=f"add `{missing['name']}: ...`")
    return document.error(message[:1].lower() + message[1:], path=full)


_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def _with_keys(inner: str, value: Any, kind: type) -> str:
    """msgspec writes `[...]` for the key of a mapping: find the key whose value is refused."""
    if "[...]" not in inner:
        return inner
    head, tail = inner.split("[...]", 1)
    for step in _STEP.finditer(head):
        value = value[int(step[2])] if step[2] else value[step[1]]
    mapping = _kind_at(kind, head)
    if isinstance(value, dict) and isinstance(mapping, mi.DictType):
        for key, entry in value.items():
            try:
                msgspec.convert(entry, _annotation(mapping.value_type), dec_hook=_custom)
            except msgspec.ValidationError:
                return f"{head}.{key}{tail}"
    return inner


def _annotation(info: Any) -> Any:
    """The type that a simple description stands for."""
    simple: dict[type, Any] = {mi.IntType: int, mi.FloatType: float, mi.StrType: str, mi.BoolType: bool}
    return info.cls if hasattr(info, "cls") else simple.get(type(info), Any)


def _kind_at(kind: Any, path: str) -> Any:
    """The struct class (or the description of the type) that a msgspec path leads to."""
    info: Any = mi.type_info(kind)
    for step in _STEP.finditer(path):
        info = _inner(info, step[1], bool(step[2]))
        if info is None:
            return None
    info = _without_none(info)
    return info.cls if isinstance(info, mi.StructType) else info


def _without_none(info: Any) -> Any:
    while isinstance(info, mi.UnionType | mi.Metadata):
        if isinstance(info, mi.Metadata):
            info = info.type
            continue
        rest = [option for option in info.types if not isinstance(option, mi.NoneType)]
        structs = [option for option in rest if isinstance(option, mi.StructType)]
        info = (structs or rest)[0]
    return info


def _inner(info: Any, name: str | None, item: bool) -> Any:
    info = _without_none(info)
    if isinstance(info, mi.StructType):
        return next((field.type for field in info.fields if field.encode_name == name), None)
    if isinstance(info, mi.DictType):
        return info.value_type
    if item and hasattr(info, "item_type"):
        return info.item_type
    return None
