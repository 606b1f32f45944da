"""`pd-profile-handler`: deprecated; `disagg-profile-handler` without encode, and with a decider unless told otherwise.

When to use it: only for configurations that have it. Write instead:

    - type: disagg-profile-handler
      parameters:
        profiles: {decode: decode, prefill: prefill}
        deciders: {prefill: prefix-based-pd-decider}

Parameters:
- `decodeProfile` (decode), `prefillProfile` (prefill): names of the profiles.
- `deciderPluginName` (prefix-based-pd-decider): has to be among the plugins.
- `primaryPort` (0: off): the gateway sends every request to this port of the chosen pod, and
  `x-data-parallel-host-port` names the chosen rank.
- `prefixPluginType`, `prefixPluginName`, `prefixMatchInfoProducerName`: without effect, which is said in the log; the
  decider has such a parameter of its own.

Metrics and failure behaviour are those of `disagg-profile-handler`. Spans: `pick_pd_profile`, `prepare_disaggregation`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

import epp
from epp_plugins.profiles.data_parallel import send_to_port
from epp_plugins.profiles.stages import StagedProfileHandler, Stages

_IGNORED = ("prefixPluginType", "prefixPluginName", "prefixMatchInfoProducerName")


class PdProfileHandlerParams(epp.Params, frozen=True):
    """See the module."""

    decode_profile: Annotated[str, msgspec.Meta(min_length=1, description="profile whose server answers")] = "decode"
    prefill_profile: Annotated[str, msgspec.Meta(min_length=1, description="profile whose server reads the prompt")] = (
        "prefill"
    )
    decider_plugin_name: Annotated[str, msgspec.Meta(min_length=1, description="plugin that is asked")] = (
        "prefix-based-pd-decider"
    )
    primary_port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="port requests are sent to; 0: off")] = 0
    prefix_plugin_type: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""
    prefix_plugin_name: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""
    prefix_match_info_producer_name: Annotated[str, msgspec.Meta(description="no effect: set it on the decider")] = ""

    def __post_init__(self) -> None:
        if self.decode_profile == self.prefill_profile:
            raise ValueError("decodeProfile and prefillProfile must be two different profiles")


class PdProfileHandler(StagedProfileHandler[PdProfileHandlerParams]):
    """Decode, and prefill where it pays."""

    type = "pd-profile-handler"
    stability = "deprecated"
    span_name = "pick_pd_profile"
    Params = PdProfileHandlerParams

    def __init__(self, params: PdProfileHandlerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        given = (params.prefix_plugin_type, params.prefix_plugin_name, params.prefix_match_info_producer_name)
        for name, value in zip(_IGNORED, given, strict=True):
            if value:
                context.log.warning("%s: parameter %s has no effect: remove it", self.name, name)
        self._use(
            Stages(
                decode=params.decode_profile,
                prefill=params.prefill_profile,
                prefill_decider=params.decider_plugin_name,
            )
        )

    def conclude(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        super().conclude(request, result)
        if self.params.primary_port:
            send_to_port(result, self.params.primary_port)
