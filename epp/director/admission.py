"""May this request be scheduled now? The seam behind which queues with priorities and fairness can come."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from epp.api.endpoints import Endpoints
from epp.api.errors import ResourceExhausted, ServiceUnavailable
from epp.api.plugin import SaturationDetector
from epp.api.request import InferenceRequest
from epp.scheduling.guard import PluginTimings


class Admission(Protocol):
    """Admits by returning (or by an awaitable that returns), refuses by raising a `RequestError`."""

    def admit(self, request: InferenceRequest, endpoints: Endpoints) -> Awaitable[None] | None:
        """`endpoints` are all of the pool, not only the request's candidates."""


class SheddableAdmission:
    """The plain rule: a sheddable request (priority below 0) is refused while the pool is saturated (1.0 or more).

    Everybody else is admitted without a look, so the detector costs nothing on the common path. The dropped-reason
    header is always sent; llm-d-router leaves it out in this one case.
    """

    def __init__(self, detector: SaturationDetector[Any], timings: PluginTimings) -> None:
        self._detector = detector
        self._timings = timings

    def admit(self, request: InferenceRequest, endpoints: Endpoints) -> None:
        if request.priority < 0 and self._saturated(endpoints):
            raise ResourceExhausted("system saturated, sheddable request dropped", reason="rejected-saturated")

    def _saturated(self, endpoints: Endpoints) -> bool:
        """A detector that fails has no say, like every plugin: the filters still keep requests off full endpoints."""
        try:
            return bool(self._detector.saturation(endpoints) >= 1.0)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._timings.failed("Admission", self._detector.type, self._detector.name, error)
            return False


class StandbyAdmission:
    """Another replica is the leader: whoever asks here all the same is told so, and may ask again."""

    def admit(self, request: InferenceRequest, endpoints: Endpoints) -> None:
        raise ServiceUnavailable("this picker is on standby: another replica is the leader", reason="rejected-standby")
