"""The model list of a server."""

import logging
import random
from pathlib import Path

import pytest

from epp.api import MODELS, Endpoint, EndpointTable, ModelInfo, NoParams, PluginContext
from epp_plugins.extractors.models import ModelsDataExtractor

LIST = (Path(__file__).parents[2] / "data" / "datalayer" / "models.json").read_bytes()


def build() -> tuple[ModelsDataExtractor, EndpointTable, Endpoint, int]:
    table = EndpointTable()
    context = PluginContext("m", lambda: 0.0, random.Random(1), logging.getLogger(), table, lambda n: pytest.fail(n))
    endpoint = Endpoint("pod", "10.0.0.1", 8000)
    return ModelsDataExtractor(NoParams(), context), table, endpoint, table.add(endpoint)


def test_a_captured_list() -> None:
    extractor, table, endpoint, row = build()
    extractor.extract(row, endpoint, LIST)
    expected = (
        ModelInfo("tiny"),
        ModelInfo("tiny-alias"),
        ModelInfo("lora-a", "tiny"),
        ModelInfo("lora-b", "tiny"),
        ModelInfo("lora-c", "tiny"),
    )
    assert table.attributes[row][MODELS] == expected
    assert table.all(0.0).attribute(MODELS) == [expected]
    assert extractor.dump_state() == {"models": ["lora-a", "lora-b", "lora-c", "tiny", "tiny-alias"], "count": 5}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": [{"name": 1}]}', b"<html>", b'{"data": [{"id": "a"}'])
def test_anything_else_leaves_the_last_list(body: bytes) -> None:
    extractor, table, endpoint, row = build()
    extractor.extract(row, endpoint, LIST)
    with pytest.raises(ValueError, match="not a list of models"):
        extractor.extract(row, endpoint, body)
    assert len(table.attributes[row][MODELS]) == 5
