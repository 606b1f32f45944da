"""`epp plugins`: what can be written in a configuration, told from the code that runs."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect as mi

from epp.api.errors import ConfigError
from epp.api.plugin import Plugin
from epp.cli import plugins_new
from epp.cli.output import print_json, table
from epp.config.decode import fields_of
from epp.config.duration import Duration
from epp.config.quantity import Quantity
from epp.config.roles import Role
from epp.registry.catalog import Catalog
from epp.registry.inspection import roles_of


def run(argv: list[str]) -> int:
    """0: printed. 1: the type does not exist, or some plugin is broken."""
    if argv[:1] == ["new"]:
        return plugins_new.run(argv[1:])
    parser = argparse.ArgumentParser(
        prog="epp plugins",
        description="List all plugin types, or document one of them.",
        epilog="`epp plugins new scorer my-scorer` writes a package to start from.",
    )
    parser.add_argument("type", nargs="?", help="the type to document; also module:Class or ./file.py:Class")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args(argv)
    try:
        catalog = Catalog.load(Path.cwd())
        if options.type is not None:
            described = describe(catalog, options.type)
            if options.output == "json":
                print_json(described)
            else:
                _print_one(described)
            return 0
    except ConfigError as error:
        if options.output == "json":
            print_json({"error": {"message": error.message, "fix": error.fix}})
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1
    return _list(catalog, as_json=options.output == "json")


def describe(catalog: Catalog, kind: str) -> dict[str, Any]:
    """Everything that is known of a type. Raises `ConfigError` when it cannot be used."""
    found = catalog.resolve(kind)
    return {
        "type": kind,
        "roles": [role.value for role in Role if role in roles_of(found)],
        "stability": found.stability,
        "summary": summary(found),
        "description": _module_doc(found),
        "class": f"{found.__module__}:{found.__qualname__}",
        "from": catalog.origin(kind),
        "parameters": parameters(found.Params),
    }


def summary(kind: type[Plugin[Any]]) -> str:
    """The first sentence of the module's docstring without the type, else of the class's."""
    first = _module_doc(kind).split("\n\n", 1)[0].replace("\n", " ")
    for prefix in (f"`{kind.type}`: ", f"`{kind.type}`", f"{kind.type}: "):
        first = first.removeprefix(prefix)
    text = first.strip() or (inspect.getdoc(kind) or "").split("\n\n", 1)[0].replace("\n", " ")
    return text[:1].upper() + text[1:] if text[1:2].islower() else text


def parameters(kind: type[msgspec.Struct], prefix: str = "") -> list[dict[str, Any]]:
    """Each parameter with name, type, default, bounds and description; nested ones as `outer.inner`."""
    described: list[dict[str, Any]] = []
    for name, field in fields_of(kind).items():
        info, bounds, description = _unwrapped(field.type)
        default, required = _default(field)
        inner = [_section(option) for option in (info.types if isinstance(info, mi.UnionType) else (info,))]
        described.append(
            {
                "name": prefix + name,
                "type": _type_name(info),
                "default": default,
                "required": required,
                "bounds": bounds,
                "description": description or next((_sentence(cls) for cls, _ in filter(None, inner)), ""),
            }
        )
        for cls, listed in filter(None, inner):
            if cls is not kind:
                described += parameters(cls, f"{prefix}{name}{'[]' if listed else ''}.")
    return described


def _section(info: Any) -> tuple[type[msgspec.Struct], bool] | None:
    """The struct that a parameter is, or is a list of (True)."""
    nested = getattr(info, "item_type", info)
    return (nested.cls, nested is not info) if isinstance(nested, mi.StructType) else None


def _sentence(kind: type) -> str:
    """The first one of a class's own docstring."""
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n", 1)[0].replace("\n", " ").split(". ", 1)[0].rstrip(".")


def _list(catalog: Catalog, *, as_json: bool) -> int:
    listed: list[dict[str, Any]] = []
    broken: list[str] = []
    for kind in catalog.types():
        try:
            listed.append(describe(catalog, kind))
        except ConfigError as error:
            broken.append(f"{kind}: {error}")
    if as_json:
        keep = ("type", "roles", "stability", "summary", "from")
        print_json({"plugins": [{key: one[key] for key in keep} for one in listed], "broken": broken})
    else:
        for role in Role:
            rows = [
                (one["type"], one["stability"], one["summary"]) for one in listed if one["roles"][:1] == [role.value]
            ]
            if rows:
                table(role.value if role in (Role.DISCOVERY, Role.HOOKS) else f"{role.value}s", _HEADER, rows)
                print()
    for problem in broken:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if broken else 0


_HEADER = ("type", "stability", "what it does")


def _print_one(described: dict[str, Any]) -> None:
    print(f"{described['type']}  ({', '.join(described['roles'])}; {described['stability']}; {described['from']})\n")
    print(described["description"] or described["summary"])
    print()
    if not described["parameters"]:
        print("parameters: none")
        return
    table(
        "parameters",
        ("name", "type", "default", "bounds", "description"),
        [
            (
                one["name"],
                one["type"],
                "required" if one["required"] else _shown(one["default"], one["type"]),
                one["bounds"],
                one["description"],
            )
            for one in described["parameters"]
        ],
    )


def _module_doc(kind: type[Plugin[Any]]) -> str:
    module = sys.modules.get(kind.__module__)
    return inspect.cleandoc(module.__doc__ or "") if module is not None else ""


def _default(field: mi.Field) -> tuple[Any, bool]:
    if field.required:
        return None, True
    value = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    if isinstance(value, Duration):
        return str(value), False
    if isinstance(value, Quantity):
        return int(value), False
    return msgspec.to_builtins(value, enc_hook=str), False


def _unwrapped(info: Any) -> tuple[Any, str, str]:
    """The type without its annotations, its bounds in words, its description."""
    info, description = _bare(info)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}
    found: list[str] = []
    for option in info.types if isinstance(info, mi.UnionType) else (info,):
        inner, inner_description = _bare(option)
        description = description or inner_description
        found += [f"{sign} {bound}" for at, sign in signs.items() if (bound := getattr(inner, at, None)) is not None]
        if getattr(inner, "pattern", None):
            found.append(f"matches {inner.pattern}")
    return info, ", ".join(found), description


def _bare(info: Any) -> tuple[Any, str]:
    """The type inside its annotations, and the description among them."""
    description = ""
    while isinstance(info, mi.Metadata):
        description = description or (info.extra_json_schema or {}).get("description", "")
        info = info.type
    return info, description


def _type_name(info: Any) -> str:
    info, _ = _bare(info)
    simple = {mi.IntType: "integer", mi.FloatType: "number", mi.StrType: "text", mi.BoolType: "true or false"}
    for kind, name in simple.items():
        if isinstance(info, kind):
            return name
    if isinstance(info, mi.LiteralType):
        return " or ".join(map(str, info.values))
    if isinstance(info, mi.EnumType):
        return " or ".join(str(member.value) for member in info.cls)
    if isinstance(info, mi.UnionType):
        names = [_type_name(option) for option in info.types if not isinstance(option, mi.NoneType)]
        return " or ".join(dict.fromkeys(names))
    if isinstance(info, mi.DictType):
        return f"mapping of {_type_name(info.value_type)}"
    if hasattr(info, "item_type"):
        return f"list of {_type_name(info.item_type)}"
    if isinstance(info, mi.StructType):
        return "mapping"
    if isinstance(info, mi.CustomType) and info.cls is not object:
        return info.cls.__name__.lower()
    return "anything"


def _shown(value: Any, kind: str) -> str:
    if value is None:
        return "none"
    if kind == "mapping":
        return ""  # the rows below have the default of each entry
    return msgspec.json.encode(value).decode() if not isinstance(value, str) else value or '""'
