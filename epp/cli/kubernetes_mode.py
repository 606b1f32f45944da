"""What `epp serve` does with a Kubernetes API server: endpoints, declarations, leadership, and who reads metrics.

Imported and connected only when a flag asks for it.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from epp.api.endpoints import EndpointTable
from epp.api.plugin import Clock, Parser
from epp.cli.flags import FlagError, ServeOptions
from epp.cli.high_availability import Leadership, lease_name
from epp.director.objectives import ObjectiveTable
from epp.director.pool import Pool
from epp.director.rewrites import RewriteTable
from epp.kubernetes.connection import ApiConnection, connect
from epp.kubernetes.declarations import Declared, InferenceModelRewrite, InferenceObjective, Scope, priorities
from epp.kubernetes.leader_election import ElectionSettings
from epp.kubernetes.lease_store import ApiLease
from epp.kubernetes.metrics_auth import MetricsAuth
from epp.kubernetes.notifications import ObjectNotifications
from epp.kubernetes.pool import PoolSource, PoolWatcher, SelectedPods
from epp.telemetry.metrics import Registry
from epp.transport.health import HealthState

log = logging.getLogger("epp")

_DECLARATIONS_SECONDS = 10.0
"""How long a picker that starts waits for objectives and rewrites before it is ready without them. A rewrite that is
not known yet would send requests for a model that nobody serves; a CRD that is broken must not keep the pool away."""

_POD = re.compile(r"(.+)-[a-z0-9]+-[a-z0-9]+")


def namespace_of(options: ServeOptions, environment: Mapping[str, str] = os.environ) -> str:
    """`--pool-namespace`, then `$NAMESPACE`, then `default`."""
    return options.pool_namespace or environment.get("NAMESPACE", "") or "default"


def pool_name(options: ServeOptions, environment: Mapping[str, str] = os.environ) -> str:
    """The pool's name for metrics and the lease; with a selector it is the Deployment's, from `$POD_NAME`.

    `FlagError`: replicas that do not know it would not share one lease.
    """
    if options.pool_name or not options.endpoint_selector:
        return options.pool_name or "epp"
    pod = environment.get("POD_NAME", "")
    if not pod and options.ha_enable_leader_election:
        raise FlagError(
            "--endpoint-selector with --ha-enable-leader-election needs the environment variable POD_NAME "
            "(downward API: metadata.name)"
        )
    found = _POD.fullmatch(pod)
    return found[1] if found else pod or "epp"


class KubernetesMode:
    """`await start(pool)` once the pool is built; `synced` says whether requests can be served."""

    def __init__(
        self,
        options: ServeOptions,
        table: EndpointTable,
        registry: Registry,
        health: HealthState,
        *,
        objectives: ObjectiveTable,
        rewrites: RewriteTable,
        clock: Clock,
        rng: random.Random,
        discovery: bool,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.connection: ApiConnection | None = None
        self.leadership: Leadership | None = None
        self.source: PoolSource | None = None
        self._options = options
        self._table = table
        self._registry = registry
        self._health = health
        self._objectives = objectives
        self._rewrites = rewrites
        self._clock = clock
        self._rng = rng
        self._discovery = discovery
        self._environment = environment
        self._declared: list[Declared[Any]] = []
        self._declare_by = 0.0  # 0: not waited for any more
        self._parsers: Sequence[Parser[Any]] = ()
        self._unfit = ""
        self._notifications: ObjectNotifications | None = None

    async def connect(self) -> None:
        """Sign in. `ConfigError`: there is no API server to be found."""
        self.connection = await connect(self._environment)

    def metrics_auth(self) -> MetricsAuth:
        """For the metrics port; after `connect`."""
        return MetricsAuth(self._connected, self._clock)

    @property
    def _connected(self) -> ApiConnection:
        if self.connection is None:
            raise RuntimeError("not connected to the API server")
        return self.connection

    @property
    def synced(self) -> bool:
        """Whether endpoints and declarations are known, and every parser understands what the servers speak."""
        if self.source is None:
            return True
        return self.source.synced and self._declarations_known() and self._fits(self.source.protocol)

    def _declarations_known(self) -> bool:
        if all(declared.synced for declared in self._declared):
            self._declare_by = 0.0
        elif self._declare_by and self._clock() >= self._declare_by:
            self._declare_by = 0.0
            log.warning(
                "ready without InferenceObjectives and InferenceModelRewrites: they could not be read for %.0f s",
                _DECLARATIONS_SECONDS,
            )
        return not self._declare_by

    def _fits(self, protocol: str) -> bool:
        unfit = [parser.name for parser in self._parsers if parser.protocols and protocol not in parser.protocols]
        if not protocol or not unfit:
            self._unfit = ""
            return True
        if self._unfit != protocol:
            self._unfit = protocol
            log.error(
                "not ready: the pool's appProtocol is %s, which %s cannot speak: change one of them",
                protocol, ", ".join(unfit),
            )  # fmt: skip
        return False

    async def start(self, pool: Pool) -> None:
        """Follow the pool and what belongs to it, and stand for election."""
        connection = self._connected
        self._parsers = pool.assembly.parsers
        if not self._discovery:
            await self._follow(connection)
            self._notify(connection, pool)
        if self._options.ha_enable_leader_election:
            await self._stand_for_election(connection, pool)

    async def stop(self) -> None:
        """End of everything here; endpoints stay as they are."""
        if self.leadership is not None:
            await self.leadership.stop()
        if self._notifications is not None:
            await self._notifications.stop()
        for declared in self._declared:
            await declared.stop()
        if self.source is not None:
            await self.source.stop()
        if self.connection is not None:
            await self.connection.close()

    async def hand_over(self, patience: float) -> None:
        """The drain begins. Returns when this replica need not be ready any more, at most `patience` seconds later."""
        if self.leadership is not None:
            await self.leadership.hand_over(patience)

    async def _follow(self, connection: ApiConnection) -> None:
        options, namespace = self._options, namespace_of(self._options, self._environment)
        if options.pool_name:
            group = options.pool_group
            watcher = PoolWatcher(
                connection,
                self._table,
                namespace,
                options.pool_name,
                clock=self._clock,
                rng=self._rng,
                group=group,
            )
            source: PoolSource = watcher
            self._declare(connection, namespace, group)
        else:
            source = SelectedPods(
                connection,
                self._table,
                namespace,
                options.endpoint_selector,
                options.endpoint_target_ports,
                clock=self._clock,
                rng=self._rng,
            )
        self.source = source
        self._registry.sampled_gauge(
            "kubernetes_state_age_seconds",
            "Seconds since the API server was last heard; up to a minute or two is normal, more means it is lost.",
            (),
            lambda: [((), source.age)],
        )
        self._registry.sampled_gauge(
            "kubernetes_unreadable_objects",
            "How often the pool or a pod was not what its kind says, and was left out or left as it was.",
            (),
            lambda: [((), float(source.unreadable))],
        )
        await source.start()
        self._declare_by = self._clock() + _DECLARATIONS_SECONDS
        for declared in self._declared:
            declared.start()

    def _notify(self, connection: ApiConnection, pool: Pool) -> None:
        self._notifications = ObjectNotifications(
            connection,
            namespace_of(self._options, self._environment),
            pool.assembly.object_sources,
            clock=self._clock,
            rng=self._rng,
            metrics=self._registry,
        )
        self._notifications.start()

    def _declare(self, connection: ApiConnection, namespace: str, group: str) -> None:
        def objectives(objects: list[InferenceObjective]) -> None:
            self._objectives.replace(priorities(objects))

        def rewrites(objects: list[InferenceModelRewrite]) -> None:
            found = [obj.rewrite for obj in objects]
            self._registry.pin_models(name for rewrite in found for name in rewrite.model_names())
            self._rewrites.replace(found)

        scope = Scope(namespace, self._options.pool_name, group)
        clock, rng = self._clock, self._rng
        self._declared = [
            Declared(connection, InferenceObjective, "inferenceobjectives", scope, objectives, clock=clock, rng=rng),
            Declared(
                connection, InferenceModelRewrite, "inferencemodelrewrites", scope, rewrites, clock=clock, rng=rng
            ),
        ]

    async def _stand_for_election(self, connection: ApiConnection, pool: Pool) -> None:
        options = self._options
        namespace = self._environment.get("NAMESPACE") or namespace_of(options, self._environment)
        name = lease_name(pool_name(options, self._environment), namespace_of(options, self._environment))
        self.leadership = Leadership(
            ApiLease(connection, namespace, name),
            pool,
            self._health,
            self._registry,
            clock=self._clock,
            rng=self._rng,
            settings=ElectionSettings(lease_duration=options.ha_lease_duration, retry_period=options.ha_retry_period),
            synced=lambda: self.synced,
        )
        log.info("standing for election: lease %s/%s", namespace, name)
        await self.leadership.start()
