"""Which endpoint answered, as the gateway tells it: through Envoy, also when it was not the one that was picked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PROMPT = {"model": "m", "prompt": "Write as if you were a critic: San Francisco", "max_tokens": 5}

TELLING = '''
import epp


class Telling(epp.EndpointScorer):
    """Prefers server-0, then server-1; tells on the answer what was picked and what served."""

    type = "telling"

    def score_endpoint(self, request, endpoint):
        return {"server-0": 1.0, "server-1": 0.5}.get(endpoint.pod or endpoint.name, 0.0)

    def on_picked(self, request, result):
        request.attributes[epp.DataKey("picked", self.name)] = result.target.picked[0].host_port

    def on_response_headers(self, request, response):
        response.set_headers["x-test-picked"] = request.attributes[epp.DataKey("picked", self.name)]
        response.set_headers["x-conformance-test-served-endpoint"] = response.served
'''
CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: './telling.py:Telling', name: telling}
- {type: max-score-picker, parameters: {maxNumOfEndpoints: 2}}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: telling}, {pluginRef: max-score-picker}]
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "telling.py").write_text(TELLING)
    return CONFIG


async def test_the_served_endpoint_is_the_one_that_answered(stage: Any, config: str) -> None:
    async with stage("istio", config=config) as s:
        hosts = [f"127.0.0.1:{port}" for port in s.servers.ports]
        answer = await s.post(PROMPT)
        assert answer.status == 200, dict(answer.headers)
        assert answer.headers["x-served-by"] == "0"
        assert answer.headers["x-conformance-test-served-endpoint"] == hosts[0]

        await s.servers.stop_one(0)  # the picker has not heard of it; the gateway goes on to the second of the list
        for headers in ({}, {"x_do_stream": "5"}):
            answer = await s.post(PROMPT, **headers)
            assert answer.status == 200
            assert answer.headers["x-served-by"] == "1"
            assert answer.headers["x-test-picked"] == hosts[0]
            assert answer.headers["x-conformance-test-served-endpoint"] == hosts[1]
        await s.idle()
        await s.clean()


@pytest.mark.parametrize("flavour", ["standalone", "light", "kgateway"])
async def test_where_the_gateway_does_not_tell_it_is_the_picked_one(stage: Any, config: str, flavour: str) -> None:
    one = config.replace("maxNumOfEndpoints: 2", "maxNumOfEndpoints: 1")
    async with stage(flavour, config=one) as s:
        answer = await s.post(PROMPT)
        assert answer.headers["x-served-by"] == "0"
        assert answer.headers["x-conformance-test-served-endpoint"] == f"127.0.0.1:{s.servers.ports[0]}"
        await s.clean()
