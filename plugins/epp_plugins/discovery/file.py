"""`file-discovery`: the endpoints of the pool are listed in a file. No Kubernetes needed.

Use it in tests, on bare machines, or wherever something else writes the list. The format is in
`epp/datalayer/endpoint_file.py`. Refer to it with `dataLayer: {discovery: {pluginRef: ...}}`.

Parameters: `path` (required); `watchFile` (false): load the file again when it changes; `resolveInterval` ("30s"): how
often host names are resolved again, "0s" never. The watcher looks at the file four times a second and loads it once
it has been unchanged for two looks, so that a file that is being written is not read half-way; renames, symbolic-link
swaps (ConfigMaps) and writes in place are all seen.

A host name stands for one server: the gateway needs an IP, so the first address of the name is used, and kept while
the name still has it. When it has not, the endpoint moves to another one and what was measured is forgotten.

Endpoints that are no longer listed are removed; those that stay keep their measurements. Only endpoints that came from
this file are touched.

Metrics: `datalayer_discovery_errors_total{plugin_name, reason}` with reasons `file`, `entry`, `resolve`. Failure: a bad
entry is logged with its index and reason, and left out; a file that cannot be read or parsed is logged, and the last
good list stays; a name that cannot be resolved keeps its last address. At start a missing or unusable file is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Annotated, Any

import msgspec

from epp.api import ConfigError, Discovery, Endpoint, Params, PluginContext
from epp.datalayer.durations import seconds
from epp.datalayer.endpoint_file import MAX_BYTES, BadEntry, EndpointFileError, Entry, parse_endpoint_file

_LOOK = 0.25  # seconds between two looks at the file
_LOGGED = 20  # bad entries named in the log per load; the rest is counted
_RESOLVERS = 16  # names resolved at the same time
_RESOLVE_TIMEOUT = 5.0

Signature = tuple[int, int, int, int, int]


class FileDiscoveryParams(Params, frozen=True):
    """Parameters of `file-discovery`."""

    path: Annotated[str, msgspec.Meta(min_length=1, description="YAML or JSON file with the endpoints")]
    watch_file: Annotated[bool, msgspec.Meta(description="load the file again when it changes")] = False
    resolve_interval: Annotated[str | float, msgspec.Meta(description="time between two look-ups of host names")] = (
        "30s"
    )

    def __post_init__(self) -> None:
        seconds(self.resolve_interval)


class FileDiscovery(Discovery[FileDiscoveryParams]):
    """Keeps the endpoint table equal to a file."""

    type = "file-discovery"
    Params = FileDiscoveryParams

    def __init__(self, params: FileDiscoveryParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._entries: list[Entry] = []
        self._bad: list[BadEntry] = []
        self._addresses: dict[str, str] = {}  # host name -> the address in use
        self._ours: set[str] = set()  # host_port of the endpoints that came from here
        self._loads = 0
        self._last_error = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._applying = asyncio.Lock()
        self._errors: Any = None
        if context.metrics is not None:
            self._errors = context.metrics.counter(
                "datalayer_discovery_errors_total",
                "Endpoints or lists that could not be used.",
                ("plugin_name", "reason"),
            )

    async def start(self) -> None:
        signature = _signature(self.params.path)
        try:
            await self._load()
        except EndpointFileError as error:
            raise ConfigError(
                f"{self.name}: {self.params.path} {error}", path="path", fix="name a file with a list `endpoints`"
            ) from None
        if self.params.watch_file:
            self._tasks.append(asyncio.create_task(self._watch(signature)))
        interval = seconds(self.params.resolve_interval)
        if interval is not None:
            self._tasks.append(asyncio.create_task(self._resolve_again(interval)))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def dump_state(self) -> Any:
        return {
            "path": self.params.path,
            "loads": self._loads,
            "endpoints": len(self._ours),
            "badEntries": [{"index": bad.index, "reason": bad.reason} for bad in self._bad[:100]],
            "lastError": self._last_error,
        }

    # Loading.

    async def _load(self) -> None:
        entries, bad = await asyncio.to_thread(_read, self.params.path)  # 1 MiB of YAML takes a while to parse
        self._entries, self._bad = entries, bad
        self._loads += 1
        self._last_error = ""
        for entry in bad[:_LOGGED]:
            what = "left out" if entry.left_out else "used, but"
            self.context.log.warning("%s: endpoints[%d] %s: %s", self.params.path, entry.index, what, entry.reason)
        if len(bad) > _LOGGED:
            self.context.log.warning("%s: %d more entries with mistakes", self.params.path, len(bad) - _LOGGED)
        self._count("entry", len(bad))
        await self._apply(self._entries)

    async def _apply(self, entries: list[Entry]) -> None:
        async with self._applying:
            await self._resolve({entry.address for entry in entries if not entry.is_ip})
            if entries is not self._entries:
                return  # a newer list was loaded while names were being resolved
            wanted: dict[str, Endpoint] = {}
            for entry in entries:
                address = entry.address if entry.is_ip else self._addresses.get(entry.address)
                if address is None:
                    continue  # reported by _resolve, tried again later
                endpoint = Endpoint(entry.name, address, entry.port, entry.namespace, entry.labels, rank=entry.rank)
                other = wanted.setdefault(endpoint.host_port, endpoint)
                if other is not endpoint:
                    self._count("resolve", 1)
                    self.context.log.warning(
                        "%s: endpoints[%d] left out: %s resolves to %s, which %s already has",
                        self.params.path,
                        entry.index,
                        entry.address,
                        endpoint.host_port,
                        other.key,
                    )
            table = self.context.table
            for host_port in self._ours - wanted.keys():
                table.remove(host_port)
            for endpoint in wanted.values():
                table.add(endpoint)
            self._ours = set(wanted)

    async def _resolve(self, hosts: set[str]) -> None:
        limit = asyncio.Semaphore(_RESOLVERS)

        async def resolve(host: str) -> None:
            async with limit:
                try:
                    async with asyncio.timeout(_RESOLVE_TIMEOUT):
                        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
                except (OSError, UnicodeError, TimeoutError) as error:
                    kept = self._addresses.get(host)
                    self._count("resolve", 1)
                    self.context.log.warning(
                        "%s: cannot resolve %s (%s); %s",
                        self.params.path,
                        host,
                        str(error) or "no answer",
                        f"it keeps {kept}" if kept else "it is left out until it resolves",
                    )
                    return
            addresses = [str(address[0]) for *_, address in found]
            if addresses and self._addresses.get(host) not in addresses:
                self._addresses[host] = addresses[0]

        for gone in self._addresses.keys() - hosts:
            del self._addresses[gone]
        await asyncio.gather(*(resolve(host) for host in sorted(hosts)))

    # What goes on in the background.

    async def _watch(self, loaded: Signature | None) -> None:
        before = loaded
        while True:
            await asyncio.sleep(_LOOK)
            now = _signature(self.params.path)
            if now is not None and now == before and now != loaded:
                loaded = now
                await self._reload()
            elif now is None and before is not None:
                loaded = None
                self._report("is gone; the last list stays in use")
            before = now

    async def _reload(self) -> None:
        try:
            await self._load()
            self.context.log.info("%s: loaded, %d endpoints", self.params.path, len(self._ours))
        except EndpointFileError as error:
            self._report(f"{error}; the last list stays in use")
        except Exception:
            self._count("file", 1)
            self.context.log.exception("%s: could not be loaded; the last list stays in use", self.params.path)

    async def _resolve_again(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            if any(not entry.is_ip for entry in self._entries):
                with contextlib.suppress(OSError):
                    await self._apply(self._entries)

    def _report(self, message: str) -> None:
        self._last_error = message
        self._count("file", 1)
        self.context.log.error("%s %s", self.params.path, message)

    def _count(self, reason: str, number: int) -> None:
        if self._errors is not None and number:
            self._errors.labels(self.name, reason).inc(number)


def _signature(path: str) -> Signature | None:
    """Changes whenever the file behind the path does; None when there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _read(path: str) -> tuple[list[Entry], list[BadEntry]]:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EndpointFileError(f"cannot be read: {error.strerror or error}") from None
    return parse_endpoint_file(content)
