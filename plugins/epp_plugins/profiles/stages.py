"""What the handlers of prefill/decode share: which profile runs after which, and what their results mean.

Decode first: the decode server is chosen, then the deciders are asked once, and the profiles of the stages they want
run with the decode server as their peer. Prefill first: the prompt's server is chosen without asking, then media and
decode, the latter with the prompt's server as its peer.

A stage whose profile finds nobody is left to the server that comes after it, and so is one whose server turns out to be
that same server: sending itself a request would only cost time. The decode profile's refusal is the request's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import epp
from epp.api.plugin import ParamsT
from epp.telemetry.logs import RateLimitedLog
from epp_plugins.profiles.disagg_headers import name_servers
from epp_plugins.profiles.disagg_metrics import (
    DECIDER_FAILED,
    NO_ENCODE_ENDPOINT,
    NO_PREFILL_ENDPOINT,
    SAME_ENDPOINT,
    Decisions,
    Fallbacks,
    decision_type,
)

Done = Mapping[str, epp.ProfileResult | None]

_WHOLE = frozenset({"embeddings", "conversations", "generations", "render", "count_tokens", "tokenize", "detokenize"})
"""Last segments of paths that one server answers alone."""

_DECISION = "llm_d.epp.profile_handler.decision"
_PREFILL_USED = "llm_d.epp.pd.disaggregation_used"
_ENCODE_USED = "llm_d.epp.encode.disaggregation_used"
_ENCODERS = "llm_d.epp.encode.endpoints"
_PREFILL_ADDRESS = "llm_d.epp.pd.prefill_pod_address"
_PREFILL_PORT = "llm_d.epp.pd.prefill_pod_port"


@dataclass(frozen=True, slots=True)
class Stages:
    """Names of the profiles, and of the deciders; an empty decider is none."""

    decode: str = "decode"
    prefill: str = "prefill"
    encode: str = "encode"
    prefill_decider: str = ""
    encode_decider: str = ""
    prefill_first: bool = False


class StagedProfileHandler(epp.ProfileHandler[ParamsT]):
    """Runs the profiles of the stages. Subclasses say which these are, with `_use`."""

    span_name: ClassVar[str] = "pick_disagg_profile"

    def _use(self, stages: Stages) -> None:
        self.stages = stages
        self._prefill_decider = self._decider(stages.prefill_decider, "prefill")
        self._encode_decider = self._decider(stages.encode_decider, "encode")
        self._decisions = Decisions(self)
        self._fallbacks = Fallbacks(self)
        self._log = RateLimitedLog(self.context.log, self.context.clock)

    @property
    def produces(self) -> Sequence[epp.DataKey]:
        return (epp.PEER_ENDPOINT,)

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        """What the deciders read, who are asked in its place."""
        deciders = (d for d in (self._prefill_decider, self._encode_decider) if d is not None)
        return tuple(key for decider in deciders for key in (*decider.consumes, *decider.consumes_if_present))

    def _decider(self, name: str, stage: str) -> epp.Decider[Any] | None:
        if not name:
            return None
        found = self.context.find(name)
        if not isinstance(found, epp.Decider):
            raise epp.ConfigError(
                f"{name} (type {found.type}) decides nothing",
                path=f"deciders.{stage}",
                fix="name a decider, such as one of type `prefix-based-pd-decider`",
            )
        return found

    def check_profiles(self, names: Sequence[str]) -> Sequence[str]:
        stages = self.stages
        there = ", ".join(names)
        for stage, profile, needed in (
            ("decode", stages.decode, True),
            ("prefill", stages.prefill, self._prefill_decider is not None),
            ("encode", stages.encode, self._encode_decider is not None),
        ):
            if needed and profile not in names:
                raise epp.ConfigError(
                    f"there is no scheduling profile `{profile}` for the stage {stage}, only {there}",
                    fix=f"add it to schedulingProfiles, or name another one as `profiles.{stage}`",
                )
        warnings = []
        if stages.prefill in names and not stages.prefill_first and self._prefill_decider is None:
            warnings.append(
                f"{self.name} never runs the profile `{stages.prefill}`: name a decider as `deciders.prefill`"
            )
        if stages.prefill_first and stages.prefill not in names:
            warnings.append(f"{self.name} begins with prefill, but there is no profile `{stages.prefill}`: decode only")
        if stages.encode in names and self._encode_decider is None:
            warnings.append(
                f"{self.name} never runs the profile `{stages.encode}`: name a decider as `deciders.encode`"
            )
        known = (stages.decode, stages.prefill, stages.encode)
        warnings += [f"{self.name} never runs the profile `{name}`" for name in names if name not in known]
        return warnings

    def next_profiles(self, request: epp.InferenceRequest, profiles: Mapping[str, Any], done: Done) -> Sequence[str]:
        if request.span is None:
            return self._next(request, profiles, done)
        span = request.span.child(self.span_name)
        try:
            names = self._next(request, profiles, done)
            span.set(_DECISION, "run_" + "_".join(names) if names else "complete")
            return names
        finally:
            span.end()

    def primary(self, request: epp.InferenceRequest, done: Done) -> str:
        return self.stages.decode

    def conclude(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        """Leave out stages that have no server of their own; count the decision."""
        stages = self.stages
        result.prefill_profile = stages.prefill
        profiles = result.profiles
        reader = result.target.picked[0]
        prefill = profiles.get(stages.prefill)
        if prefill is not None and prefill.picked[0].host_port == reader.host_port:
            del profiles[stages.prefill]
            prefill = None
            self._fallbacks.count(SAME_ENDPOINT)
        elif prefill is not None:
            reader = prefill.picked[0]
        elif stages.prefill in profiles:
            self._nobody("prefill", NO_PREFILL_ENDPOINT, "decode servers read the prompts")
        encode = profiles.get(stages.encode)
        if encode is not None and all(endpoint.host_port == reader.host_port for endpoint in encode.picked):
            del profiles[stages.encode]
            encode = None
            self._fallbacks.count(SAME_ENDPOINT)
        elif encode is None and stages.encode in profiles:
            self._nobody("encode", NO_ENCODE_ENDPOINT, "the servers that read the prompts encode their media")
        self._decisions.count(
            request.target_model, decision_type(encode=encode is not None, prefill=prefill is not None)
        )

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        """The headers for the proxy beside the decode server."""
        prefill, encode = result.prefill, result.profiles.get(self.stages.encode)
        if request.span is not None:
            self._tell(request.span.child("prepare_disaggregation"), prefill, encode)
        name_servers(result, prefill, encode)

    def dump_state(self) -> dict[str, Any]:
        """Which profiles run, and who is asked."""
        stages = self.stages
        return {
            "stageOrder": "prefill-first" if stages.prefill_first else "decode-first",
            "profiles": {"decode": stages.decode, "prefill": stages.prefill, "encode": stages.encode},
            "deciders": {"prefill": stages.prefill_decider, "encode": stages.encode_decider},
        }

    def _next(self, request: epp.InferenceRequest, profiles: Mapping[str, Any], done: Done) -> Sequence[str]:
        stages = self.stages
        if stages.prefill_first:
            if stages.decode in done:
                return ()
            if not _has_prompt_and_answer(request):
                return (stages.decode,)
            if stages.prefill in profiles and stages.prefill not in done:
                return (stages.prefill,)
            self._publish_peer(request, done.get(stages.prefill))
            wanted = self._wants(self._encode_decider, request, None)
            return (stages.encode, stages.decode) if wanted else (stages.decode,)
        if stages.decode not in done:
            return (stages.decode,)
        decode = done[stages.decode]
        if decode is None or len(done) > 1 or not _has_prompt_and_answer(request):
            return ()
        names = []
        if self._wants(self._encode_decider, request, decode):
            names.append(stages.encode)
        if self._wants(self._prefill_decider, request, decode):
            names.append(stages.prefill)
        if names:
            self._publish_peer(request, decode)
        return names

    def _wants(
        self, decider: epp.Decider[Any] | None, request: epp.InferenceRequest, decode: epp.ProfileResult | None
    ) -> bool:
        if decider is None:
            return False
        try:
            return decider.disaggregate(request, decode)
        except (epp.RequestError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a decider may be anybody's; the request can do without its stage
            self._fallbacks.count(DECIDER_FAILED)
            self._log.log(logging.ERROR, decider.name, "%s: %s failed: %s", self.name, decider.name, error, error=error)
            return False

    def _publish_peer(self, request: epp.InferenceRequest, chosen: epp.ProfileResult | None) -> None:
        if chosen is not None:
            request.attributes[epp.PEER_ENDPOINT] = chosen.picked[0]

    def _nobody(self, stage: str, reason: str, instead: str) -> None:
        self._fallbacks.count(reason)
        self._log.warning(reason, "%s: the %s profile found no server; for such requests %s", self.name, stage, instead)

    def _tell(self, span: Any, prefill: epp.ProfileResult | None, encode: epp.ProfileResult | None) -> None:
        span.set(_PREFILL_USED, prefill is not None)
        span.set(_ENCODE_USED, encode is not None)
        if prefill is not None:
            span.set(_PREFILL_ADDRESS, prefill.picked[0].address)
            span.set(_PREFILL_PORT, str(prefill.picked[0].port))
        if encode is not None:
            span.set(_ENCODERS, ",".join([endpoint.host_port for endpoint in encode.picked]))
        span.end()


def _has_prompt_and_answer(request: epp.InferenceRequest) -> bool:
    """False where the proxy before the decode server hands nothing over: lists of models, embeddings, token counts."""
    if request.method != "POST":
        return False
    return request.path.partition("?")[0].rstrip("/").rpartition("/")[2] not in _WHOLE
