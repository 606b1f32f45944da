"""What was predicted against what the servers report: is the index right?"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, NamedTuple

from epp.api import Clock, Usage

KEPT = 100
"""Comparisons that are kept: as many entries of a list as `/debug/plugins/state` shows."""

_WINDOW = 64
_DRIFT = 0.1  # of these, this share may be wrong before somebody is told
_QUIET = 60.0


class Prediction(NamedTuple):
    """Cached tokens of one request. `time`: when its answer ended, in seconds since the epoch. `total`: tokens of its
    prompt."""

    request: str
    time: float
    model: str
    endpoint: str
    predicted: int
    actual: int
    total: int


class SelfCheck:
    """The latest comparisons, and a warning, at most once a minute, when too many of the last ones are wrong.

    A prediction is wrong when it is off by more than one block, the server's or the configured one: what happened in
    the server between pick and prefill is normal up to there.
    """

    def __init__(self, name: str, clock: Clock, log: logging.Logger) -> None:
        self.recent: deque[Prediction] = deque(maxlen=KEPT)
        self.compared = 0
        self.exact = 0
        self._wrong: deque[bool] = deque(maxlen=_WINDOW)
        self._telling: set[str] = set()
        self._name, self._clock, self._log = name, clock, log
        self._logged = -_QUIET

    def reported(self, endpoint: str, usage: Usage) -> int | None:
        """Cached tokens as the server tells them; None when it does not.

        vLLM leaves the field out when there was no hit. So from a server that has told of a hit before, usage without
        it means 0; from another one it may mean that the server was not asked to tell.
        """
        if usage.cached_tokens is not None:
            self._telling.add(endpoint)
            return usage.cached_tokens
        return 0 if usage.prompt_tokens is not None and endpoint in self._telling else None

    def forget(self, endpoint: str) -> None:
        """The endpoint is gone."""
        self._telling.discard(endpoint)

    def compare(self, prediction: Prediction, block_size: int) -> int:
        """Take one in; returns predicted less actual."""
        error = prediction.predicted - prediction.actual
        self.recent.append(prediction)
        self.compared += 1
        self.exact += error == 0
        self._wrong.append(abs(error) > block_size)
        wrong = sum(self._wrong)
        now = self._clock()
        if len(self._wrong) == _WINDOW and wrong > _DRIFT * _WINDOW and now - self._logged >= _QUIET:
            self._logged = now
            self._log.warning(
                "%s: cached tokens were predicted wrongly for %d of the last %d requests (latest: %d predicted, %d "
                "reported by %s): look for lost events (kv_event_lost_total), another tokenizer or chat template than "
                "the server's, or a server without prefix caching",
                self._name, wrong, _WINDOW, prediction.predicted, prediction.actual, prediction.endpoint,
            )  # fmt: skip
        return error

    def dump(self) -> dict[str, Any]:
        """For the state dump."""
        return {
            "compared": self.compared,
            "exact": self.exact,
            "wrongOfLast": [sum(self._wrong), len(self._wrong)],
            "recent": [
                prediction._asdict() | {"error": prediction.predicted - prediction.actual} for prediction in self.recent
            ],
        }
