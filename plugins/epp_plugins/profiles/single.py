"""`single-profile-handler`: runs the only profile.

When to use it: the default for a configuration with one scheduling profile; with several, the start fails.

Parameters, metrics: none. Failure: the profile's own refusal is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import epp


class SingleProfileHandler(epp.ProfileHandler[epp.NoParams]):
    """One profile, once."""

    type = "single-profile-handler"

    def next_profiles(
        self, request: epp.InferenceRequest, profiles: Mapping[str, Any], done: Mapping[str, epp.ProfileResult | None]
    ) -> Sequence[str]:
        return () if done else tuple(profiles)[:1]

    def primary(self, request: epp.InferenceRequest, done: Mapping[str, epp.ProfileResult | None]) -> str:
        return next(iter(done))
