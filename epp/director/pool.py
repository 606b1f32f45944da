"""One pool of endpoints: a table, a configuration, the plugins built from it, and the director that uses them.

Everything that belongs to a pool hangs here and nowhere else, so that a second one can be built beside it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

from epp.api.endpoints import EndpointTable
from epp.api.plugin import Clock, Plugin
from epp.datalayer.cadence import CollectorSettings
from epp.datalayer.collector import Collector
from epp.datalayer.lane import SourceBinding
from epp.datalayer.notifications import notify_endpoints
from epp.director.admission import Admission, SheddableAdmission, StandbyAdmission
from epp.director.director import DecisionObserver, Director, DirectorSettings
from epp.director.naming import Objectives, Rewrites
from epp.director.parsing import ParserTable
from epp.director.recording import Recorder
from epp.registry.assembly import Assembly
from epp.scheduling.guard import PluginTimings
from epp.scheduling.scheduler import scheduler_of
from epp.telemetry.tracing import Tracer

log = logging.getLogger(__name__)


class Pool:
    """Built, then started (plugins, collector), then asked for decisions, then stopped."""

    def __init__(
        self,
        name: str,
        assembly: Assembly,
        table: EndpointTable,
        *,
        recorder: Recorder,
        timings: PluginTimings,
        clock: Clock,
        rng: random.Random,
        metrics: Any = None,
        settings: DirectorSettings | None = None,
        collector_settings: CollectorSettings | None = None,
        observers: Sequence[DecisionObserver] = (),
        tracer: Tracer | None = None,
        objectives: Objectives | None = None,
        rewrites: Rewrites | None = None,
    ) -> None:
        self.name = name
        self.assembly = assembly
        self.table = table
        self._admission: Admission = SheddableAdmission(assembly.saturation_detector, timings)
        self._timings = timings
        self.director = Director(
            table=table,
            parsers=ParserTable(assembly.parsers),
            scheduler=scheduler_of(assembly.profiles, assembly.handler, timings=timings, clock=clock),
            producers=assembly.plugins.producers,
            admitters=assembly.admitters,
            plugins=list(assembly.plugins.by_name.values()),
            admission=self._admission,
            recorder=recorder,
            timings=timings,
            clock=clock,
            settings=settings or DirectorSettings(),
            observers=observers,
            tracer=tracer,
            objectives=objectives,
            rewrites=rewrites,
        )
        bindings = [SourceBinding(source.source, source.extractors) for source in assembly.sources]
        self.collector = Collector(
            table, bindings, clock=clock, rng=rng, metrics=metrics, settings=collector_settings or CollectorSettings()
        )
        notify_endpoints(table, assembly.endpoint_extractors, clock=clock, metrics=metrics)
        self._started: list[Plugin[Any]] = []
        self.synced = False

    @property
    def plugins(self) -> dict[str, Plugin[Any]]:
        """All plugins by name."""
        return self.assembly.plugins.by_name

    def stand_by(self, waiting: bool) -> None:
        """Refuse all requests, or take them again. Everything else goes on: a pool on standby stays warm."""
        self.director.admission = StandbyAdmission() if waiting else self._admission

    async def start(self) -> None:
        """Start the collector and every plugin; when one fails, stop those before it and raise its error."""
        await self.collector.start()
        try:
            for plugin in self.assembly.plugins.start_order:
                self._started.append(plugin)
                await plugin.start()
        except BaseException:
            await self.stop()
            raise
        self.synced = True

    async def stop(self) -> None:
        """Stop everything that was started, last first; an error in one does not keep the others running."""
        self.synced = False
        while self._started:
            plugin = self._started.pop()
            try:
                await plugin.stop()
            except Exception:
                log.exception("plugin %s did not stop cleanly", plugin.name)
        await self.collector.stop()

    def ready(self) -> bool:
        """The endpoints are known and every plugin says it can work."""
        return self.synced and all(map(self._is_ready, self.plugins.values()))

    def _is_ready(self, plugin: Plugin[Any]) -> bool:
        """A plugin that cannot even say so is not: counted, and asked again the next time."""
        try:
            return bool(plugin.ready())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._timings.failed("Readiness", plugin.type, plugin.name, error)
            return False
