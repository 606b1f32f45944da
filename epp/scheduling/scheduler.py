"""The profiles of a pool and the handler that decides which of them run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from epp.api.endpoints import Endpoints
from epp.api.errors import RequestError, ResourceExhausted
from epp.api.plugin import Clock, Filter, Picker, ProfileHandler, ProfileResult, SchedulingResult, Scorer
from epp.api.request import InferenceRequest
from epp.scheduling.guard import Guarded, PluginTimings
from epp.scheduling.profile import SchedulingProfile


@dataclass(frozen=True, slots=True)
class ProfileAssembly:
    """What one scheduling profile is made of; scorers with their weights."""

    name: str
    filters: tuple[Filter[Any], ...]
    scorers: tuple[tuple[Scorer[Any], float], ...]
    picker: Picker[Any]


class Scheduler:
    """Runs profiles until the handler asks for no more."""

    def __init__(
        self,
        profiles: Mapping[str, SchedulingProfile],
        handler: ProfileHandler[Any],
        *,
        timings: PluginTimings,
        clock: Clock,
    ) -> None:
        self.profiles = dict(profiles)
        self._next = Guarded(handler, handler.next_profiles, "ProfilePicker", timings, clock)
        self._primary = Guarded(handler, handler.primary, "ProcessProfilesResults", timings, clock)
        concludes = type(handler).conclude is not ProfileHandler.conclude
        self._conclude = (
            Guarded(handler, handler.conclude, "ProcessProfilesResults", timings, clock) if concludes else None
        )

    def schedule(self, request: InferenceRequest, endpoints: Endpoints) -> SchedulingResult:
        """One result per profile that ran; the error of the primary profile when it found nothing."""
        done: dict[str, ProfileResult | None] = {}
        errors: dict[str, RequestError] = {}
        more = True
        while more:
            more = False
            for name in self._next.run_with(request, self.profiles, done) or ():
                if name in done:
                    continue
                more = True
                profile = self.profiles.get(name)
                if profile is None:
                    raise ResourceExhausted(
                        f"failed to find target endpoint: no scheduling profile {name!r}, only "
                        + ", ".join(sorted(self.profiles)),
                    )
                try:
                    done[name] = profile.run(request, endpoints)
                except RequestError as error:
                    done[name] = None
                    errors[name] = error
        primary = self._primary.run(request, done) if done else None
        if primary is None or done.get(primary) is None:
            raise (
                errors.get(primary or "")
                or next(iter(errors.values()), None)
                or ResourceExhausted("failed to find target endpoint: no profile produced one")
            )
        result = SchedulingResult(primary=primary, profiles=done)
        if self._conclude is not None:
            self._conclude.run(request, result)
        return result


def scheduler_of(
    profiles: Iterable[ProfileAssembly], handler: ProfileHandler[Any], *, timings: PluginTimings, clock: Clock
) -> Scheduler:
    """The scheduler of an assembled configuration; `timings` hears of every plugin's duration and failure."""
    made = {
        profile.name: SchedulingProfile(
            profile.name,
            filters=profile.filters,
            scorers=profile.scorers,
            picker=profile.picker,
            timings=timings,
            clock=clock,
        )
        for profile in profiles
    }
    return Scheduler(made, handler, timings=timings, clock=clock)
