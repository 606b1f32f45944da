"""`models-data-extractor`: reads `/v1/models` into the endpoint's attribute `models`, a tuple of `epp.ModelInfo`.

Use it with `models-data-source`; read it with `endpoints.attribute(MODELS)`. No parameters.

Metrics: `datalayer_extract_errors_total{source_type, extractor_type}`. Failure: an answer that is no model list leaves
the last list in place.
"""

from __future__ import annotations

from typing import Any

import msgspec

from epp.api import MODELS, Endpoint, Extractor, ModelInfo, NoParams, PluginContext


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class ModelsDataExtractor(Extractor[NoParams]):
    """Stores the models of each server."""

    type = "models-data-extractor"

    def __init__(self, params: NoParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._decoder = msgspec.json.Decoder(_Models)

    def extract(self, row: int, endpoint: Endpoint, data: bytes) -> None:
        try:
            listed = self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a list of models: {error}") from None
        models = tuple(ModelInfo(model.id, model.parent or "") for model in listed.data)
        self.context.table.attributes[row][MODELS] = models

    def dump_state(self) -> Any:
        table = self.context.table
        served = {model.id for row in table.rows.tolist() for model in table.attributes[row].get(MODELS, ())}
        return {"models": sorted(served)[:100], "count": len(served)}
