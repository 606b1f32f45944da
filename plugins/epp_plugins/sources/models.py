"""`models-data-source`: the list of models that every server serves, LoRA adapters included.

Use it with `models-data-extractor`. Parameters are those of `metrics-data-source`; `path` defaults to `/v1/models` and
`interval` to 10 seconds, because the list changes when somebody loads a model, not with the traffic.

Metrics: `datalayer_poll_errors_total{source_type}`. Failure: a server that does not answer keeps its last list.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from epp_plugins.sources.http import HttpSource, HttpSourceParams


class ModelsSourceParams(HttpSourceParams, frozen=True):
    """As of every HTTP source, with another path."""

    path: Annotated[str, msgspec.Meta(pattern="^/", description="path and query to ask for")] = "/v1/models"


class ModelsDataSource(HttpSource):
    """Fetches `/v1/models`."""

    type = "models-data-source"
    Params = ModelsSourceParams
    default_interval = 10.0
