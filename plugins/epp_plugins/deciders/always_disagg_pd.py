"""`always-disagg-pd-decider`: every prompt goes to a prefill server.

When to use it: decode servers that shall never read prompts, or a first set-up of prefill/decode, to see that it works.
Otherwise `prefix-based-pd-decider` saves the transfer for prompts that are short or cached.

Parameters, metrics: none. Failure: none; without a prefill server the handler lets the decode server read the prompt.
"""

from __future__ import annotations

import epp


class AlwaysDisaggPDDecider(epp.Decider[epp.NoParams]):
    """Yes."""

    type = "always-disagg-pd-decider"

    def disaggregate(self, request: epp.InferenceRequest, decode: epp.ProfileResult | None) -> bool:
        return True
