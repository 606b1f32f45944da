"""`context-length-aware`: brings prompts to the servers that were set up for their length; scorer and filter.

When to use it: a pool with servers of different memory, each with a label that says which prompt lengths it is for:
`llm-d.ai/context-length-range: "0-8192"` (tokens, both ends included).

| server | score |
|---|---|
| in range | 0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (max - tokens) / width); 1 when the width is 0 |
| out of range | 0.3 / (1 + distance / 1000) |
| without the label | 0.5 |
| with a label that is no range | 0 |

Narrow ranges win over wide ones, and a near miss over a far one.

Parameters: `label` (llm-d.ai/context-length-range); `enableFiltering` (false): also drop servers out of range (and with
an unreadable label); those without the label stay. `reusableTokensProducerName` is accepted and has no effect: the
whole prompt counts, also what could be fetched from the cache of another server.

Metrics: none. Failure: a request whose prompt nobody understood has no length; the plugin then has no say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np

import epp
from epp_plugins.filters.label_column import LabelColumn

_UNREADABLE = (1.0, 0.0)
"""A range that nothing is in; its distance is not looked at."""


class ContextLengthAwareParams(epp.Params, frozen=True):
    """See the module."""

    label: Annotated[str, msgspec.Meta(min_length=1, description='label with the range, "min-max" in tokens')] = (
        "llm-d.ai/context-length-range"
    )
    enable_filtering: Annotated[bool, msgspec.Meta(description="drop servers out of range")] = False
    reusable_tokens_producer_name: Annotated[str, msgspec.Meta(description="no effect: the whole prompt counts")] = ""


class ContextLengthAware(epp.Scorer[ContextLengthAwareParams], epp.Filter[ContextLengthAwareParams]):
    """Compares the prompt's tokens with the range on a label."""

    type = "context-length-aware"
    Params = ContextLengthAwareParams

    def __init__(self, params: ContextLengthAwareParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        if params.reusable_tokens_producer_name:
            context.log.warning(
                "%s: reusableTokensProducerName has no effect: nothing tells yet what can be fetched from another "
                "server's cache, so the whole prompt counts; remove it",
                self.name,
            )
        self._low = LabelColumn(lambda labels: self._range(labels)[0], np.float64)
        self._high = LabelColumn(lambda labels: self._range(labels)[1], np.float64)
        self._full = LabelColumn(lambda labels: _in_range(*self._range(labels))[0], np.float64)
        self._per_token = LabelColumn(lambda labels: _in_range(*self._range(labels))[1], np.float64)

    @property
    def consumes(self) -> Sequence[epp.DataKey]:
        return (epp.DataKey(epp.TOKENIZED_PROMPT, "token-producer"),)

    def filter(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.BoolArray:
        if not self.params.enable_filtering or request.prompt is None:
            return np.ones(len(endpoints), dtype=np.bool_)
        low, high = self._low.of(endpoints), self._high.of(endpoints)
        tokens = request.input_tokens
        keep: epp.BoolArray = ((low <= tokens) & (tokens <= high)) | np.isnan(low)
        return keep

    def score(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> epp.Scores:
        if request.prompt is None:
            return np.full(len(endpoints), np.nan)
        low, high = self._low.of(endpoints), self._high.of(endpoints)
        tokens = request.input_tokens
        inside = self._full.of(endpoints) + self._per_token.of(endpoints) * (high - tokens)
        short, over = low - tokens, tokens - high  # at most one of them is above 0
        missed = np.maximum(np.maximum(short, over), 0.0)
        scores = np.where(missed == 0.0, inside, 300.0 / (1_000.0 + missed))
        scores[low > high] = 0.0
        scores[np.isnan(low)] = 0.5
        return scores

    def _range(self, labels: Mapping[str, str]) -> tuple[float, float]:
        """Both ends; NaN without the label; `_UNREADABLE` when it is no range."""
        text = labels.get(self.params.label)
        if text is None:
            return np.nan, np.nan
        low, dash, high = text.partition("-")
        if not dash or not (low.strip().isdecimal() and high.strip().isdecimal()):
            return _UNREADABLE
        ends = float(low), float(high)
        return ends if ends[0] <= ends[1] else _UNREADABLE


def _in_range(low: float, high: float) -> tuple[float, float]:
    """The score of a prompt as long as the range allows, and what each token less adds."""
    width = high - low
    if width <= 0.0:
        return 1.0, 0.0
    return 0.3 + 0.7 * 0.7 / (1.0 + width / 10_000.0), 0.7 * 0.3 / width
