"""Which HTTP proxy leads to the API server, from the environment, as Go programs read it.

`HTTPS_PROXY` (or `https_proxy`) for an https server, `HTTP_PROXY` for http; never for this machine; not for
what `NO_PROXY` lists: `*`, hosts with all their subdomains, `.only.subdomains`, addresses, networks (`10.0.0.0/8`),
each with a port or without.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from yarl import URL


def from_environment(server: str, environment: Mapping[str, str]) -> str:
    """The proxy's URL, "" for none."""
    url = URL(server)
    proxy = _variable(environment, f"{url.scheme}_proxy")
    if not proxy or not _asks(url.host or "", url.port or 0, _variable(environment, "no_proxy")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _asks(host: str, port: int, without: str) -> bool:
    """Whether a proxy is asked for this host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return False
    return not any(_matches(entry.strip().lower(), host, port, address) for entry in without.split(","))


def _matches(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if not entry or entry == "*":
        return entry == "*"
    name, wanted = entry, ""
    if entry.startswith("[") or entry.count(":") == 1:
        name, _, wanted = entry.rpartition(":") if not entry.endswith("]") else (entry, "", "")
        name = name.strip("[]")
    if wanted and wanted != str(port):
        return False
    if address is not None:
        try:
            return address in ipaddress.ip_network(name, strict=False)
        except ValueError:
            return False
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")
