"""The endpoint file: which entries of it can be used, and what is wrong with the others. Pure.

```yaml
endpoints:
- {name: a, namespace: default, address: 10.0.0.1, port: "8000", labels: {llm-d.ai/role: decode}}
```

YAML or JSON. `namespace` defaults to `default`, `labels` to none; `address` is an IPv4 or IPv6 literal or a host
name; `port` a number from 1 to 65535, as a string or not. `rank` (0) is the data-parallel rank behind this port: it
tells on which port the server publishes its KV events.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from epp.datalayer.bounded_yaml import BoundedLoader

MAX_BYTES = 1024 * 1024
_FIELDS = {"name", "namespace", "address", "port", "labels", "rank"}
_HOST_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)
_IDENTITY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A usable entry. `address` is an IP literal in its canonical form when `is_ip`, else a lower-case host name."""

    index: int
    name: str
    namespace: str
    address: str
    port: int
    labels: Mapping[str, str]
    is_ip: bool
    rank: int = 0


@dataclass(frozen=True, slots=True)
class BadEntry:
    """What is wrong with an entry: its position in `endpoints` (from 0), and whether it could be used all the same."""

    index: int
    reason: str
    left_out: bool = True


class EndpointFileError(Exception):
    """The file as a whole cannot be used; says why."""


def parse_endpoint_file(content: bytes) -> tuple[list[Entry], list[BadEntry]]:
    """All usable entries, and what is wrong with entries.

    Raises `EndpointFileError` when the content is no endpoint file at all.
    """
    if len(content) > MAX_BYTES:
        raise EndpointFileError(f"larger than {MAX_BYTES} bytes: split the pool or shorten the labels")
    document = _load(content)
    if not isinstance(document, dict) or "endpoints" not in document:
        raise EndpointFileError("has no list `endpoints` at the top level")
    listed = document["endpoints"]
    if listed is None:
        listed = []
    if not isinstance(listed, list):
        raise EndpointFileError(f"`endpoints` is a {type(listed).__name__}, not a list")
    good: list[Entry] = []
    bad: list[BadEntry] = []
    names: dict[tuple[str, str], int] = {}
    places: dict[tuple[str, int], int] = {}
    for index, raw in enumerate(listed):
        try:
            entry = _entry(index, raw)
            first = names.get((entry.namespace, entry.name))
            if first is not None:
                raise ValueError(f"{entry.namespace}/{entry.name} is already entry {first}")
            first = places.get((entry.address, entry.port))
            if first is not None:
                raise ValueError(f"address {entry.address} with port {entry.port} is already entry {first}")
        except ValueError as error:
            bad.append(BadEntry(index, str(error)))
            continue
        names[entry.namespace, entry.name] = places[entry.address, entry.port] = index
        good.append(entry)
        unknown = sorted(str(key) for key in raw if key not in _FIELDS)
        if unknown:
            reason = f"unknown field {unknown[0]!r} is ignored: use {', '.join(sorted(_FIELDS))}"
            bad.append(BadEntry(index, reason, left_out=False))
    return good, bad


def _load(content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip().startswith("{"):
            try:
                return json.loads(text)
            except ValueError:
                pass  # a flow mapping of YAML may start like that, too
        return yaml.load(text, Loader=BoundedLoader)  # a safe loader
    except UnicodeDecodeError as error:
        raise EndpointFileError(f"is not UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise EndpointFileError(f"is neither YAML nor JSON: {' '.join(str(error).split())}") from None
    except (RecursionError, ValueError, OverflowError) as error:  # deep nesting; impossible dates and numbers
        raise EndpointFileError(f"cannot be read: {type(error).__name__}: {error}") from None


def _entry(index: int, raw: Any) -> Entry:
    if not isinstance(raw, dict):
        raise ValueError(f"is a {type(raw).__name__}, not a mapping")
    name = _identity("name", raw.get("name"))
    namespace = _identity("namespace", raw.get("namespace") or "default")
    address, is_ip = _address(raw.get("address"))
    port, labels, rank = _port(raw.get("port")), _labels(raw.get("labels")), _rank(raw.get("rank", 0))
    return Entry(index, name, namespace, address, port, labels, is_ip, rank)


def _shown(value: Any) -> str:
    """A value for a message. Nested ones by their type: with aliases a few lines may stand for a billion elements."""
    if isinstance(value, str):
        return repr(value[:80])
    return repr(value) if isinstance(value, (int, float, type(None))) else f"a {type(value).__name__}"


def _identity(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field} is {_shown(value)}: write a non-empty string")
    if _IDENTITY.fullmatch(value) is None:
        raise ValueError(f"{field} {value[:80]!r}: letters, digits, '-', '_', '.' and ':' only, at most 253")
    return value


def _address(value: Any) -> tuple[str, bool]:
    if not isinstance(value, str) or not value:
        raise ValueError(f"address is {_shown(value)}: write an IP address or a host name")
    literal = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        ip = ipaddress.ip_address(literal)
    except ValueError:
        ip = None
    if ip is not None:
        if getattr(ip, "scope_id", None):
            raise ValueError(f"address {value!r}: a gateway cannot reach an address with a scope")
        if ip.is_unspecified or ip.is_multicast:
            raise ValueError(f"address {value!r} is no address of a single server")
        return str(ip), True
    host = value.rstrip(".").lower()
    parts = host.split(".")
    if len(host) > 253 or not all(_HOST_LABEL.fullmatch(part) for part in parts) or parts[-1].isdigit():
        raise ValueError(f"address {value[:80]!r} is neither an IP address nor a host name")
    return host, False


def _port(value: Any) -> int:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 5:
        raise ValueError(f'port is {_shown(value)}: write "1" to "65535"')
    if not 1 <= int(text) <= 65535:
        raise ValueError(f"port {_shown(value)} is not from 1 to 65535")
    return int(text)


def _rank(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 65535:
        raise ValueError(f"rank is {_shown(value)}: write a number from 0 to 65535")
    return value


def _labels(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"labels is a {type(value).__name__}, not a mapping")
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(f"label {_shown(key)}: {_shown(text)} is not a string, put it in quotes")
    return dict(value)
