"""What stands for the world outside when the demo runs a configuration that was written for a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epp.demo.stand_ins import StandIns, roles, stand_in


def made(*plugins: dict[str, Any]) -> tuple[StandIns, list[dict[str, Any]]]:
    ports = iter((7000, 7100))
    config = {"plugins": list(plugins)}
    return stand_in(config, "http://127.0.0.1:1", lambda: next(ports), Path("/etc/epp")), config["plugins"]


def test_what_names_nothing_outside_stays_as_it_is() -> None:
    plugins = [
        {"type": "queue-scorer"},
        {"type": "token-producer", "parameters": {"estimate": {}}},
        {"type": "token-producer", "name": "local", "parameters": {"local": {"tokenizerPath": "/m"}}},
        {"type": "precise-prefix-cache-producer", "parameters": {"kvEventsConfig": {"discoverPods": False}}},
        {"type": "my.module:Scorer"},
    ]
    before = json.dumps(plugins)
    found, after = made(*plugins)
    assert (found, json.dumps(after)) == (StandIns(), before)
    assert stand_in({}, "http://x", lambda: 1) == StandIns()


def test_a_model_name_alone_means_a_render_server() -> None:
    found, (plugin,) = made({"type": "token-producer", "parameters": {"modelName": "m"}})
    assert plugin["parameters"] == {"modelName": "m", "vllm": {"url": "http://127.0.0.1:1"}}
    assert found.models == ["m"]
    assert "instead of http://localhost:8000" in found.said[0]


def test_all_precise_plugins_hear_the_same_events() -> None:
    bound = {"kvEventsConfig": {"zmqEndpoint": "tcp://*:5557"}, "tokenProcessorConfig": {"blockSizeTokens": 64}}
    replayed = {"kvEventsConfig": {"podDiscoveryConfig": {"replaySocketPort": 5558, "podLabelSelector": "a=b"}}}
    found, (one, other) = made(
        {"type": "precise-prefix-cache-producer", "parameters": bound},
        {"type": "precise-prefix-cache-scorer", "parameters": replayed},
    )
    assert one["parameters"]["kvEventsConfig"] == {
        "discoverPods": True,
        "podDiscoveryConfig": {"podLabelSelector": "", "podNamespace": "", "socketPort": 7000},
    }
    assert other["parameters"]["kvEventsConfig"]["podDiscoveryConfig"]["replaySocketPort"] == 7100
    assert found.ranks
    assert found.simulator[2:] == ["--block-size", "64"]
    assert json.loads(found.simulator[1])["endpoint"] == "tcp://*:7000"
    assert found.said == ["KV events come from tcp://*:7000 and up instead of tcp://*:5557"]


def test_a_plugin_file_is_found_from_elsewhere_and_keeps_its_name() -> None:
    _, (named, nameless) = made({"name": "x", "type": "./p.py:X"}, {"type": "./p.py:Y"})
    assert named == {"name": "x", "type": "/etc/epp/p.py:X"}
    assert nameless == {"name": "./p.py:Y", "type": "/etc/epp/p.py:Y"}


def test_roles() -> None:
    phases = {"plugins": [{"type": "prefill-filter"}]}
    assert roles(phases, 3) == ["decode", "decode", "prefill"]
    assert roles(phases, 1) == [""]
    assert roles({}, 2) == ["", ""]
