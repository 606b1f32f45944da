"""The metrics port: `/metrics`, `/debug/plugins/state`, `/healthz` and `/readyz`.

It shares the event loop with the requests, so whatever takes long is done in slices or in a thread.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec
from aiohttp import web
from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

from epp.telemetry.exposition import render
from epp.telemetry.metrics import Registry

MAX_STATE_ENTRIES = 100
"""Entries of each list or mapping in a dump, as in llm-d-router: a dump must not hold up the requests."""

_NO_DUMP = "plugin does not support state collection"

Authenticate = Callable[[web.Request], Awaitable[int | None]]
"""Decides on a request to `/metrics` or `/debug`: an HTTP status to refuse with, None to let it pass."""


class StatefulPlugin(Protocol):
    """What the dump needs of a plugin (`epp.api.plugin.Plugin` is one)."""

    type: ClassVar[str]

    @property
    def name(self) -> str:
        """Its name in the configuration."""

    def dump_state(self) -> Any:
        """A small JSON-able picture, None for nothing."""


class AdminServer:
    """Serves the metrics port. `plugins` is asked at every dump, since a reload may replace them.

    `collecting`: a small JSON-able picture of how the pool is scraped.
    """

    def __init__(
        self,
        registry: Registry,
        plugins: Callable[[], Iterable[StatefulPlugin]],
        *,
        authenticate: Authenticate | None = None,
        ready: Callable[[], bool] = lambda: True,
        collecting: Callable[[], Any] = lambda: None,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        collectors: Sequence[Collector] | None = None,
    ) -> None:
        self._registry = registry
        self._plugins = plugins
        self._authenticate = authenticate
        self._ready = ready
        self._collecting = collecting
        self._wall_clock = wall_clock
        self._collectors = [ProcessCollector(registry=None)] if collectors is None else list(collectors)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port (of interest when 0 was asked for). OSError when the port is taken."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/debug/plugins/state", self._plugin_state)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        # A scraper that hangs must not delay the end of the process.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runner = runner
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        try:
            await site.start()
        except OSError:
            await self.close()
            raise
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening and end open connections."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._authenticate is not None and request.path not in ("/healthz", "/readyz"):
            refused = await self._authenticate(request)
            if refused is not None:
                return web.Response(status=refused, text=f"{refused}: not allowed to read {request.path}\n")
        return await handler(request)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "not ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        page, content_type = await render(self._registry, request.headers.get("Accept", ""), self._collectors)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            page = await asyncio.to_thread(gzip.compress, page, 5)
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=page, headers=headers)

    async def _plugin_state(self, _request: web.Request) -> web.Response:
        state = plugin_state(self._plugins(), self._wall_clock()) | {"collector": self._collecting()}
        return web.Response(body=msgspec.json.encode(state, enc_hook=str), content_type="application/json")


def plugin_state(plugins: Iterable[StatefulPlugin], now: datetime) -> dict[str, Any]:
    """The document of `/debug/plugins/state`: `{timestamp, plugins: {name: {name, type, state | message}}}`."""
    shown: dict[str, Any] = {}
    for plugin in plugins:
        entry: dict[str, Any] = {"name": plugin.name, "type": plugin.type}
        try:
            state = bounded(plugin.dump_state())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            entry["message"] = f"the dump failed: {type(error).__name__}: {error}"
        else:
            entry.update({"message": _NO_DUMP} if state is None else {"state": state})
        shown[plugin.name] = entry
    return {"timestamp": now.isoformat(), "plugins": shown}


def bounded(value: Any, limit: int = MAX_STATE_ENTRIES, depth: int = 8) -> Any:
    """The value with every list and mapping cut to `limit` entries; what is left out is told."""
    if isinstance(value, Mapping):
        if depth == 0:
            return f"({len(value)} entries)"
        items = [(str(key), bounded(each, limit, depth - 1)) for key, each in list(value.items())[:limit]]
        if len(value) > limit:
            items.append(("...", f"{len(value) - limit} more"))
        return dict(items)
    if isinstance(value, list | tuple | set | frozenset):
        if depth == 0:
            return f"({len(value)} entries)"
        entries = [bounded(each, limit, depth - 1) for each in list(value)[:limit]]
        if len(value) > limit:
            entries.append(f"... {len(value) - limit} more")
        return entries
    return value


def metrics_tls(cert_dir: str, client_ca_file: str = "", *, authenticated: bool) -> ssl.SSLContext | None:
    """The context for `--metrics-cert-dir` (`tls.crt`, `tls.key`) and `--metrics-client-ca-file`; None: plaintext.

    At least TLS 1.2. `authenticated`: whether `--metrics-endpoint-auth` is on; without it, TLS wants a client CA.
    """
    if not cert_dir:
        if client_ca_file:
            raise ValueError("--metrics-client-ca-file needs --metrics-cert-dir: client certificates need TLS")
        return None
    if not client_ca_file and not authenticated:
        raise ValueError(
            "--metrics-cert-dir without --metrics-client-ca-file needs --metrics-endpoint-auth: "
            "otherwise anyone may read the metrics"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate, key = Path(cert_dir, "tls.crt"), Path(cert_dir, "tls.key")
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"--metrics-cert-dir: cannot load {certificate} and {key}: {error}") from error
    if client_ca_file:
        try:
            context.load_verify_locations(client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"--metrics-client-ca-file: cannot load {client_ca_file}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
