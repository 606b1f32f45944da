"""`data-parallel-profile-handler`: deprecated; all ranks of a pod behind one port, for gateways that know only one.

What it does: runs the only profile; the gateway sends the request to `primaryPort` of the chosen pod, and
`x-data-parallel-host-port` names the chosen rank for the proxy there.

When to use it: only with gateways that cannot send to several ports of a pod (Istio before 1.28.1). Otherwise list the
ports in the InferencePool (`targetPorts`): each rank is an endpoint of its own, and no handler is needed.

Parameters: `primaryPort` (8000). Metrics: none. Failure: the profile's own refusal is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec

import epp
from epp_plugins.profiles.disagg_headers import DATA_PARALLEL


class DataParallelProfileHandlerParams(epp.Params, frozen=True):
    """See the module."""

    primary_port: Annotated[int, msgspec.Meta(ge=1, le=65535, description="port that requests are sent to")] = 8000


class DataParallelProfileHandler(epp.ProfileHandler[DataParallelProfileHandlerParams]):
    """One profile, one port."""

    type = "data-parallel-profile-handler"
    stability = "deprecated"
    Params = DataParallelProfileHandlerParams

    def check_profiles(self, names: Sequence[str]) -> Sequence[str]:
        if len(names) > 1:
            raise epp.ConfigError(
                f"{self.name} runs the only profile, but there are {len(names)}: {', '.join(names)}",
                fix="keep one, or use another handler",
            )
        return ()

    def next_profiles(
        self, request: epp.InferenceRequest, profiles: Mapping[str, Any], done: Mapping[str, epp.ProfileResult | None]
    ) -> Sequence[str]:
        return () if done else tuple(profiles)[:1]

    def primary(self, request: epp.InferenceRequest, done: Mapping[str, epp.ProfileResult | None]) -> str:
        return next(iter(done))

    def conclude(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        send_to_port(result, self.params.primary_port)


def send_to_port(result: epp.SchedulingResult, port: int) -> None:
    """The gateway sends to this port of the picked pods; the picked rank goes along in a header."""
    picked = result.target.picked
    result.headers[DATA_PARALLEL] = picked[0].host_port
    result.destination = ",".join([replace(endpoint, port=port).host_port for endpoint in picked])
