"""`header-profile-handler`: a request header names the scheduling profile.

What it does: runs the profile that the header names, or `defaultProfile` when the header is missing or empty. The only
profile of a configuration runs whatever the header says.

When to use it: a caller that knows which phase or class of service it asks for, such as a coordinator that sends
prefill and decode as requests of their own.

Parameters: `headerName` (EPP-Profile, without regard to case), `defaultProfile` (decode).

Metrics: none. Failure: a name that is no profile is refused with 429, as llm-d-router does; so is a missing header when
there is no profile `defaultProfile`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

import epp


class HeaderProfileHandlerParams(epp.Params, frozen=True):
    """See the module."""

    header_name: Annotated[str, msgspec.Meta(min_length=1, description="header with the profile's name")] = (
        "EPP-Profile"
    )
    default_profile: Annotated[str, msgspec.Meta(min_length=1, description="profile without the header")] = "decode"


class HeaderProfileHandler(epp.ProfileHandler[HeaderProfileHandlerParams]):
    """One profile, chosen by the client."""

    type = "header-profile-handler"
    stability = "alpha"
    Params = HeaderProfileHandlerParams

    def __init__(self, params: HeaderProfileHandlerParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._header = params.header_name.lower()

    def next_profiles(
        self, request: epp.InferenceRequest, profiles: Mapping[str, Any], done: Mapping[str, epp.ProfileResult | None]
    ) -> Sequence[str]:
        if done:
            return ()
        if len(profiles) == 1:
            return tuple(profiles)
        named = request.headers.get(self._header, "").strip()
        wanted = named or self.params.default_profile
        if wanted not in profiles:
            source = f"header {self.params.header_name}" if named else "defaultProfile"
            raise epp.ResourceExhausted(
                f"failed to find target endpoint: no scheduling profile {wanted!r} (from {source}), only "
                + ", ".join(sorted(profiles))
            )
        return (wanted,)

    def primary(self, request: epp.InferenceRequest, done: Mapping[str, epp.ProfileResult | None]) -> str:
        return next(iter(done))
