"""`disagg-profile-handler`: one server for the answer, and where it pays others for the prompt and the media.

What it does: the profile `decode` chooses the server that answers and that the gateway sends the request to. Deciders
then say whether a server of its own shall read the prompt (profile `prefill`) and others encode images, video and audio
(profile `encode`). Their addresses go along in `x-prefiller-host-port` and `x-encoder-hosts-ports`, for the routing
proxy beside the decode server. Later profiles see the server chosen before as their peer (`topology-affinity-*`).

Requests that are not made of a prompt and an answer (GET, embeddings, token counts) go to a decode server alone.

When to use it: pools with prefill servers, told apart by the label `llm-d.ai/role` (`decode-filter`, `prefill-filter`,
`encode-filter`), whose decode servers have llm-d's routing sidecar in front. See docs/disaggregation.md.

Parameters:
- `stageOrder` (decode-first): `prefill-first` chooses the prompt's server first and always; then there is no decider
  for it.
- `profiles`: names of the profiles, `decode` (decode), `prefill` (prefill), `encode` (encode).
- `deciders`: names of the plugins that are asked, `prefill` and `encode`; without one that stage has no server of its
  own.
- Deprecated, with a warning, and not together with the above: `decodeProfile`, `prefillProfile`, `encodeProfile`,
  `prefillDeciderPluginName` (also `deciderPluginName`), `encodeDeciderPluginName`. `primaryPort`, `prefixPluginType`
  and `prefixPluginName` have no effect.

Metrics: `disagg_decision_total` by plugin, model and decision_type (`decode-only`, `prefill-decode`, `encode-decode`,
`encode-prefill-decode`); `disagg_fallback_total` by reason. Spans: `pick_disagg_profile`, `prepare_disaggregation`.

Failure: no decode server refuses the request, as that profile says. No prefill or encode server (`no-prefill-endpoint`,
`no-encode-endpoint`), or only the one that comes next anyway (`same-endpoint`), or a decider that fails
(`decider-failed`): the request goes without, counted.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

import epp
from epp_plugins.profiles.stages import StagedProfileHandler, Stages

_ORDERS = {
    "": False,
    "decode": False,
    "decodefirst": False,
    "prefill": True,
    "prefillfirst": True,
}
_IGNORED = ("prefix_plugin_type", "prefix_plugin_name", "primary_port")
_LEGACY = {
    "decode_profile": "profiles.decode",
    "prefill_profile": "profiles.prefill",
    "encode_profile": "profiles.encode",
    "prefill_decider_plugin_name": "deciders.prefill",
    "encode_decider_plugin_name": "deciders.encode",
    "decider_plugin_name": "deciders.prefill",
}


class StageProfiles(epp.Params, frozen=True):
    """Names of scheduling profiles."""

    decode: Annotated[str, msgspec.Meta(description="profile whose server answers")] = ""
    prefill: Annotated[str, msgspec.Meta(description="profile whose server reads the prompt")] = ""
    encode: Annotated[str, msgspec.Meta(description="profile whose servers encode media")] = ""


class StageDeciders(epp.Params, frozen=True):
    """Names of plugins."""

    prefill: Annotated[str, msgspec.Meta(description="says whether the prompt gets a server of its own")] = ""
    encode: Annotated[str, msgspec.Meta(description="says whether media get servers of their own")] = ""


class DisaggProfileHandlerParams(epp.Params, frozen=True):
    """See the module."""

    stage_order: Annotated[str, msgspec.Meta(description="decode-first or prefill-first")] = "decode-first"
    profiles: StageProfiles = StageProfiles()
    deciders: StageDeciders = StageDeciders()
    decode_profile: Annotated[str, msgspec.Meta(description="deprecated: profiles.decode")] = ""
    prefill_profile: Annotated[str, msgspec.Meta(description="deprecated: profiles.prefill")] = ""
    encode_profile: Annotated[str, msgspec.Meta(description="deprecated: profiles.encode")] = ""
    prefill_decider_plugin_name: Annotated[str, msgspec.Meta(description="deprecated: deciders.prefill")] = ""
    encode_decider_plugin_name: Annotated[str, msgspec.Meta(description="deprecated: deciders.encode")] = ""
    decider_plugin_name: Annotated[str, msgspec.Meta(description="deprecated: deciders.prefill")] = ""
    prefix_plugin_type: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""
    prefix_plugin_name: Annotated[str, msgspec.Meta(description="deprecated, no effect")] = ""
    primary_port: Annotated[int | None, msgspec.Meta(description="deprecated, no effect")] = None

    def __post_init__(self) -> None:
        if self._order() not in _ORDERS:
            raise ValueError(f"stageOrder {self.stage_order!r} is neither decode-first nor prefill-first")
        flat = self.legacy()
        if flat and (self.profiles != StageProfiles() or self.deciders != StageDeciders()):
            raise ValueError(
                f"{', '.join(flat)}: the former flat parameters do not go together with profiles and deciders; "
                "write them all there"
            )
        stages = self.stages()
        if stages.prefill_first and stages.prefill_decider:
            raise ValueError(
                "deciders.prefill: with stageOrder prefill-first nobody is asked, since no decode server is chosen "
                "yet; remove the decider, or use decode-first"
            )
        if len({stages.decode, stages.prefill, stages.encode}) < 3:
            raise ValueError("profiles: decode, prefill and encode must be three different profiles")

    def legacy(self) -> dict[str, str]:
        """The former names in use, and what to write instead."""
        return {_camel(name): today for name, today in _LEGACY.items() if getattr(self, name)}

    def ignored(self) -> list[str]:
        """Parameters in use that have no effect."""
        return [_camel(name) for name in _IGNORED if getattr(self, name) not in (None, "")]

    def stages(self) -> Stages:
        """Everything in one place, with defaults."""
        profiles, deciders = self.profiles, self.deciders
        return Stages(
            decode=profiles.decode or self.decode_profile or "decode",
            prefill=profiles.prefill or self.prefill_profile or "prefill",
            encode=profiles.encode or self.encode_profile or "encode",
            prefill_decider=deciders.prefill or self.prefill_decider_plugin_name or self.decider_plugin_name,
            encode_decider=deciders.encode or self.encode_decider_plugin_name,
            prefill_first=_ORDERS[self._order()],
        )

    def _order(self) -> str:
        return self.stage_order.lower().replace("-", "").replace("_", "")


class DisaggProfileHandler(StagedProfileHandler[DisaggProfileHandlerParams]):
    """Decode, and prefill and encode where they pay."""

    type = "disagg-profile-handler"
    Params = DisaggProfileHandlerParams

    def __init__(self, params: DisaggProfileHandlerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        for former, today in params.legacy().items():
            context.log.warning("%s: parameter %s is deprecated, use %s", self.name, former, today)
        for name in params.ignored():
            context.log.warning("%s: parameter %s has no effect: remove it", self.name, name)
        self._use(params.stages())


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
