"""`disagg-headers-handler` and `prefill-header-handler`: deprecated; the handlers of prefill/decode do the same now.

What they do: name the servers that the profiles `prefill` and `encode` chose in the headers `x-prefiller-host-port` and
`x-encoder-hosts-ports`.

When to use: only for configurations that have them. Remove them: `disagg-profile-handler` sets these headers itself.

Parameters: `prefillProfile` (prefill), `encodeProfile` (encode). Metrics: none. Failure: a profile that did not run, or
found nobody, leaves its header out.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

import epp
from epp_plugins.profiles.disagg_headers import name_servers


class DisaggHeadersHandlerParams(epp.Params, frozen=True):
    """See the module."""

    prefill_profile: Annotated[str, msgspec.Meta(description="profile whose server reads the prompt")] = "prefill"
    encode_profile: Annotated[str, msgspec.Meta(description="profile whose servers encode media")] = "encode"


class DisaggHeadersHandler(epp.Plugin[DisaggHeadersHandlerParams]):
    """Sets the headers of prefill and encode."""

    type = "disagg-headers-handler"
    stability = "deprecated"
    Params = DisaggHeadersHandlerParams

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        name_servers(
            result, result.profiles.get(self.params.prefill_profile), result.profiles.get(self.params.encode_profile)
        )


class PrefillHeaderHandler(DisaggHeadersHandler):
    """An older name of it."""

    type = "prefill-header-handler"
