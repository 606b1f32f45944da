"""One picker in this process: configuration, pool, ports, and the order in which they begin and end."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import random
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from epp.api.endpoints import EndpointTable
from epp.api.plugin import Plugin
from epp.cli.declarations_file import DeclarationsFile
from epp.cli.flags import ServeOptions, check_pool
from epp.cli.kubernetes_mode import KubernetesMode, pool_name
from epp.cli.serving_metrics import ExchangeMetrics, expose_transport
from epp.config.load import Loaded, load, load_file
from epp.datalayer.cadence import CollectorSettings
from epp.director.director import DecisionObserver, DirectorSettings
from epp.director.objectives import ObjectiveTable
from epp.director.pool import Pool
from epp.director.rewrites import RewriteTable
from epp.extproc.service import METHOD, ProcessService
from epp.extproc.settings import ExchangeContext, ExchangeSettings
from epp.registry.build import build
from epp.registry.catalog import Catalog
from epp.registry.contexts import contexts
from epp.telemetry.admin import AdminServer, metrics_tls
from epp.telemetry.legacy_metrics import add_legacy_metrics
from epp.telemetry.logs import Logging
from epp.telemetry.metrics import Registry
from epp.telemetry.pool_metrics import PoolMetrics
from epp.telemetry.recorder import MetricsRecorder, PluginRecorder
from epp.telemetry.request_metrics import RequestMetrics, StreamMetrics
from epp.telemetry.tracing import NullTracer, Tracer, tracer_from_environment
from epp.transport.call import Handler
from epp.transport.certificates import CertificateReloader, read_pair, self_signed
from epp.transport.grpcio_server import GrpcioServer, grpcio_tls
from epp.transport.health import HealthState, health_handlers
from epp.transport.limits import Limits
from epp.transport.server import Server
from epp.transport.tls import ServerTlsFactory, server_context

log = logging.getLogger("epp")

_HAND_OVER = 0.75
"""Part of the drain window in which a leader may still be ready: half of it for somebody to follow, a quarter for the
gateway to notice."""
LAST_STREAMS_SECONDS = 90.0
"""How long open streams may go on after the drain window: with the default 30 s before it, within the 130 s that
charts give a pod to end (`terminationGracePeriodSeconds`)."""

_LOOK_SECONDS = 0.1
"""Between two looks at whether the endpoints are known: the first request of a new pool waits for it."""
_MESSAGE_HEADROOM = 1 << 20  # a BUFFERED body comes in one message, with headers and metadata around it


class Picker:
    """`await start()`, `await drain()`, `await stop()`. ConfigError, ValueError, OSError: it cannot start."""

    def __init__(
        self,
        options: ServeOptions,
        *,
        environment: Mapping[str, str] = os.environ,
        seed: int | None = None,
        observers: Sequence[DecisionObserver] = (),
        logging_: Logging | None = None,
    ) -> None:
        self.options = options
        self.registry = Registry()
        self.health = HealthState(leader_election=options.ha_enable_leader_election)
        self.clock = time.perf_counter
        self.grpc_port = options.grpc_port
        self._environment = environment
        self._stack = AsyncExitStack()
        self._request_metrics = RequestMetrics(self.registry)
        self._pool_metrics = PoolMetrics(self.registry)
        self._exchange_metrics = ExchangeMetrics(self.registry, self.clock)
        if logging_ is not None:
            logging_.handler.count_in(
                self.registry.counter("log_records_dropped_total", "Log lines for which there was no room.").labels()
            )
        if options.legacy_metrics:
            add_legacy_metrics(self.registry)
        self._request_metrics.info(environment.get("COMMIT_SHA", "unknown"), environment.get("BUILD_REF", "unknown"))
        self.tracer: Tracer = NullTracer()
        if options.tracing:
            self.tracer = tracer_from_environment(environment, log)
        rng = random.Random(seed)
        self._objectives = ObjectiveTable()
        decisions = self.registry.counter(
            "model_rewrite_decisions_total",
            "Requests whose model was rewritten by an InferenceModelRewrite.",
            ("model_rewrite_name", "model_name", "target_model"),
        )
        self._rewrites = RewriteTable(rng, lambda *decision: decisions.labels(*decision).inc())
        self.pool = self._pool(rng, observers)
        self.kubernetes = self._kubernetes(rng)
        self._server: Server | GrpcioServer | None = None

    def _pool(self, rng: random.Random, observers: Sequence[DecisionObserver]) -> Pool:
        options = self.options
        loaded, directory = self._configuration()
        table = EndpointTable()
        factory = contexts(table=table, clock=self.clock, rng=rng, metrics=self.registry)
        assembly = build(
            loaded.config,
            Catalog.load(directory),
            context_factory=factory,
            allow_experimental=options.allow_experimental_plugins,
        )
        for warning in (*loaded.warnings, *assembly.warnings):
            log.warning("%s", warning)
        check_pool(options, discovery=assembly.discovery is not None)
        recorder = MetricsRecorder(self._request_metrics, log, self.clock, response_seen=not options.response_bypass)
        recorder.watch(table)
        return Pool(
            pool_name(options, self._environment),
            assembly,
            table,
            recorder=recorder,
            timings=PluginRecorder(self._request_metrics, log, self.clock),
            clock=self.clock,
            rng=rng,
            metrics=self.registry,
            tracer=self.tracer,
            settings=DirectorSettings(
                emit_scores=options.emit_endpoint_scores,
                use_subset_hint=not options.disable_endpoint_subset_filter,
            ),
            collector_settings=CollectorSettings(
                refresh_interval=options.refresh_metrics_interval, cpu_budget=options.scrape_cpu_budget
            ),
            observers=observers,
            objectives=self._objectives,
            rewrites=self._rewrites,
        )

    def _kubernetes(self, rng: random.Random) -> KubernetesMode | None:
        discovery = self.pool.assembly.discovery is not None
        for told in self.pool.assembly.object_sources if discovery else ():
            log.warning("%s tells of nothing: endpoints come from a file, not from Kubernetes", told.source.name)
        if discovery and not self.options.ha_enable_leader_election:
            return None
        return KubernetesMode(
            self.options,
            self.pool.table,
            self.registry,
            self.health,
            objectives=self._objectives,
            rewrites=self._rewrites,
            clock=self.clock,
            rng=rng,
            discovery=discovery,
            environment=self._environment,
        )

    @property
    def _synced(self) -> bool:
        return self.pool.synced and (self.kubernetes is None or self.kubernetes.synced)

    def _plugins(self) -> Iterable[Plugin[Any]]:
        return self.pool.plugins.values()

    def _configuration(self) -> tuple[Loaded, Path]:
        options = self.options
        if options.config_file:
            path = Path(options.config_file)
            return load_file(path), path.resolve().parent
        return load(options.config_text or "", "--config-text"), Path.cwd()

    async def start(self) -> None:
        """Open the ports, health first; ext_proc once the endpoints are known. What fails closes what was opened."""
        options = self.options
        host = options.listen_address
        try:
            await _check_address(host)
            health = Server(health_handlers(self.health))
            await _listening("grpc-health-port", options.grpc_health_port, health.start(host, options.grpc_health_port))
            self._stack.push_async_callback(health.close)
            kubernetes = self.kubernetes
            if kubernetes is not None:
                await kubernetes.connect()
                self._stack.push_async_callback(kubernetes.stop)
            asks = kubernetes is not None and options.metrics_endpoint_auth
            if options.metrics_cert_dir and not (asks or options.metrics_client_ca_file):
                log.warning(
                    "--metrics-endpoint-auth has no effect without Kubernetes: whoever reaches the metrics port reads "
                    "it (--metrics-client-ca-file asks for certificates)"
                )
            admin = AdminServer(
                self.registry,
                self._plugins,
                authenticate=kubernetes.metrics_auth() if kubernetes is not None and asks else None,
                ready=lambda: self.health.ready,
                collecting=self.pool.collector.state,
            )
            metrics_tls = self._metrics_tls()
            await _listening("metrics-port", options.metrics_port, admin.start(host, options.metrics_port, metrics_tls))
            self._stack.push_async_callback(admin.close)
            await self.pool.start()
            self._stack.push_async_callback(self.pool.stop)
            if kubernetes is not None:
                await kubernetes.start(self.pool)
            if options.declarations_file:
                declarations = DeclarationsFile(
                    Path(options.declarations_file), self._objectives, self._rewrites, self.registry
                )
                await declarations.start()
                self._stack.push_async_callback(declarations.stop)
            self._server = await self._ext_proc(host)
            self._stack.push_async_callback(self._server.close)
        except BaseException:
            await self._stack.aclose()
            raise
        watch = asyncio.get_running_loop().create_task(self._watch(), name="pool-state")
        self._stack.callback(watch.cancel)
        self.health.update(synced=self._synced, plugins_ready=self.pool.ready())
        # What lives now lives as long as the process: keep the collector of cycles from looking at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        log.info(
            "%s: ext_proc on port %d (%s, transport %s), %d endpoints",
            "ready" if self.health.ready else f"not ready, waiting for {self.waiting_for()}",
            self.grpc_port,
            "TLS" if options.secure_serving else "plaintext",
            options.transport,
            len(self.pool.table),
        )

    def waiting_for(self) -> str:
        """What keeps the picker from being ready, in words; empty when nothing does."""
        reasons = [] if self._synced else ["the endpoints"]
        reasons += [f"the plugin {plugin.name}" for plugin in self._plugins() if not plugin.ready()]
        if not reasons and not self.health.ready:
            reasons = ["the leader's lease"]
        return ", ".join(reasons)

    async def drain(self) -> None:
        """Not ready any more, but serving for `--drain-timeout`; then no new streams, and time for the open ones.

        A leader stays ready for up to three quarters of it, until another one is.
        """
        ends = self.clock() + self.options.drain_timeout
        if self.kubernetes is not None:
            await self.kubernetes.hand_over(self.options.drain_timeout * _HAND_OVER)
        left = max(0.0, ends - self.clock())
        log.info("draining: not ready, serving for %.0f s more", left)
        self.health.update(draining=True)
        await asyncio.sleep(left)
        if self._server is not None:
            await self._server.drain(LAST_STREAMS_SECONDS)

    async def stop(self) -> None:
        """Close everything now."""
        await self._stack.aclose()
        self.tracer.shutdown()

    async def _ext_proc(self, host: str) -> Server | GrpcioServer:
        options = self.options
        context = ExchangeContext(
            director=self.pool.director,
            clock=self.clock,
            make_id=lambda: str(uuid.uuid4()),
            settings=ExchangeSettings(
                max_body_bytes=options.max_request_body_bytes, bypass_response=options.response_bypass
            ),
            observer=self._exchange_metrics,
            streams=StreamMetrics(self.registry) if options.enable_grpc_stream_metrics else None,
        )
        handlers: dict[str, Handler] = {METHOD: ProcessService(context)}
        if options.health_checking:
            handlers.update(health_handlers(self.health))
        limits = Limits(message=options.grpc_max_recv_msg_size or options.max_request_body_bytes + _MESSAGE_HEADROOM)
        server: Server | GrpcioServer
        if options.transport == "grpcio":
            server = GrpcioServer(handlers, limits=limits, tls=self._grpcio_tls() if options.secure_serving else None)
            if options.secure_serving:
                self._reload(server.reload)
        else:
            tls = ServerTlsFactory(self._tls_context) if options.secure_serving else None
            server = Server(handlers, limits=limits, tls=tls)
            expose_transport(self.registry, server.stats)
            if tls is not None:
                self._reload(tls.reload)
        self.grpc_port = await _listening("grpc-port", options.grpc_port, server.start(host, options.grpc_port))
        return server

    def _tls_context(self) -> ssl.SSLContext:
        options = self.options
        return server_context(
            options.cert_path or None,
            now=datetime.now(UTC),
            min_version=options.tls_min_version,
            cipher_suites=",".join(options.tls_cipher_suites),
            client_ca=options.tls_client_ca_file or None,
        )

    def _grpcio_tls(self) -> Any:
        options = self.options
        ca = None
        if options.tls_client_ca_file:
            try:
                ca = Path(options.tls_client_ca_file).read_bytes()
            except OSError as error:
                raise ValueError(f"--tls-client-ca-file: cannot load {options.tls_client_ca_file}: {error}") from error
        return grpcio_tls(
            lambda: read_pair(options.cert_path) if options.cert_path else self_signed(datetime.now(UTC)),
            min_version=options.tls_min_version,
            cipher_suites=",".join(options.tls_cipher_suites),
            client_ca=ca,
        )

    def _reload(self, load: Callable[[], None]) -> None:
        if self.options.enable_cert_reload:
            self._follow_certificate(self.options.cert_path, load)

    def _follow_certificate(self, directory: str, load: Callable[[], None]) -> None:
        counter = self.registry.counter("certificate_reloads_total", "Attempts to load a new certificate.", ("result",))
        for result in ("success", "failure"):
            counter.labels(result)  # from 0: nobody sees an increase in a series that begins with its first failure
        reloader = CertificateReloader(
            directory,
            load,
            log,
            reloaded=lambda ok: counter.labels("success" if ok else "failure").inc(),
        )
        reloader.start()
        self._stack.push_async_callback(reloader.close)

    def _metrics_tls(self) -> ssl.SSLContext | None:
        """Its certificate is followed whatever the flags, as llm-d-router does it."""
        options = self.options

        def made() -> ssl.SSLContext | None:
            return metrics_tls(
                options.metrics_cert_dir, options.metrics_client_ca_file, authenticated=options.metrics_endpoint_auth
            )

        first = newest = made()
        if first is None:
            return None

        def load() -> None:
            nonlocal newest
            newest = made()

        def present(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            if newest is not None:
                connection.context = newest

        first.sni_callback = present
        self._follow_certificate(options.metrics_cert_dir, load)
        return first

    async def _watch(self) -> None:
        """Pool gauges at their interval; readiness every second, and more often until the endpoints are known."""
        options = self.options
        next_gauges = 0.0
        announced = self.health.ready
        while True:
            now = self.clock()
            self.health.update(synced=self._synced, plugins_ready=self.pool.ready())
            if not announced and self.health.ready:
                announced = True
                log.info("ready: %d endpoints", len(self.pool.table))
            if now >= next_gauges:
                self._pool_metrics.update(self.pool.name, self.pool.table, now, options.metrics_staleness_threshold)
                next_gauges = now + options.refresh_prometheus_metrics_interval
            self._request_metrics.settle()  # of requests that were neither picked nor refused, too
            rest = 1.0 if self._synced else _LOOK_SECONDS
            await asyncio.sleep(min(rest, options.refresh_prometheus_metrics_interval or 1.0))


async def _listening(flag: str, port: int, opening: Awaitable[int]) -> int:
    """The port that `opening` has got: the system's error names neither the flag nor what to do."""
    try:
        return await opening
    except OSError as error:
        fix = {
            errno.EADDRINUSE: "another process has that port: end it, or give another port",
            errno.EACCES: "ports below 1024 are for root: give a higher one",
            errno.EADDRNOTAVAIL: "--listen-address is no address of this machine",
        }.get(error.errno or 0, "give another port")
        raise OSError(f"--{flag}={port}: {error.strerror or error} ({fix})") from error


async def _check_address(host: str) -> None:
    """Resolve `--listen-address`: the system's error names neither the flag nor the address."""
    try:
        await asyncio.get_running_loop().getaddrinfo(host or None, 0)
    except OSError as error:
        raise OSError(
            f"--listen-address: {host} is neither an address nor a name of this machine ({error.strerror})"
        ) from error
