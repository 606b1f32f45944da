"""What a configuration names of the world outside, and what stands for it when simulated servers are the pool.

A configuration that is written for a cluster names a render server, the port of KV events and labels of pods. The demo
runs it all the same: the simulated servers tokenize and publish events, on ports that are free here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK_SIZES = (8, 16, 32, 64, 128)  # those that the simulator has
_PRECISE = ("precise-prefix-cache-producer", "precise-prefix-cache-scorer")


@dataclass(slots=True)
class StandIns:
    """`simulator`: flags of `epp sim`. `models`: names that servers answer to as well. `said`: for people.

    `ranks`: each server has a rank, and so a port of its own for KV events.
    """

    simulator: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    ranks: bool = False
    said: list[str] = field(default_factory=list)


def stand_in(
    config: dict[str, Any], server: str, ports_in_a_row: Callable[[], int], directory: Path | None = None
) -> StandIns:
    """Change a valid configuration in place so that it works here. `server`: base URL of one that tokenizes.

    `ports_in_a_row` gives the first of as many free ports as there are servers. `directory`: where plugin files are.
    """
    found = StandIns()
    for plugin, kind in _plugins(config):
        if directory is not None and kind.startswith("."):
            plugin.setdefault("name", kind)
            plugin["type"] = str(directory / kind)
        if kind == "token-producer":
            _render(plugin, server, found)
        if kind in _PRECISE:
            _events(plugin, ports_in_a_row, found)
    return found


def _plugins(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for plugin in config.get("plugins") or ():
        yield plugin, str(plugin.get("type") or "")


def roles(config: dict[str, Any], count: int) -> list[str]:
    """A role for each server; without a name where the configuration tells no phases apart."""
    if count < 2 or all(kind != "prefill-filter" for _, kind in _plugins(config)):
        return [""] * count
    decode = (count + 1) // 2
    return ["decode"] * decode + ["prefill"] * (count - decode)


def _render(plugin: dict[str, Any], server: str, found: StandIns) -> None:
    parameters = plugin.get("parameters") or {}
    if not (parameters.get("vllm") or parameters.get("modelName")):
        return
    vllm = parameters["vllm"] = parameters.get("vllm") or {}
    named = vllm.get("url", "http://localhost:8000")
    vllm["url"] = server
    if parameters.get("modelName"):
        found.models.append(parameters["modelName"])
    found.said.append(f"token ids come from {server} (a simulated server) instead of {named}")


def _events(plugin: dict[str, Any], ports_in_a_row: Callable[[], int], found: StandIns) -> None:
    parameters = plugin["parameters"] = plugin.get("parameters") or {}
    events = parameters["kvEventsConfig"] = parameters.get("kvEventsConfig") or {}
    named = events.pop("zmqEndpoint", "")
    if events.get("discoverPods") is False and not named:
        return  # this picker reads what others learn
    events["discoverPods"] = True
    pods = events["podDiscoveryConfig"] = events.get("podDiscoveryConfig") or {}
    named = named or f"port {pods.get('socketPort', 5557)} of pods"
    pods |= {"podLabelSelector": "", "podNamespace": ""}
    if not found.ranks:
        found.ranks = True
        published = {
            "enable_kv_cache_events": True,
            "endpoint": f"tcp://*:{ports_in_a_row()}",
            "replay_endpoint": f"tcp://*:{ports_in_a_row()}",
            "topic": "kv@{host}:{port}@{model}",
        }
        found.simulator = ["--kv-events-config", json.dumps(published)]
        found.said.append(f"KV events come from {published['endpoint']} and up instead of {named}")
        tokens = parameters.get("tokenProcessorConfig") or {}
        size = tokens.get("blockSizeTokens") or tokens.get("blockSize")
        if size in _BLOCK_SIZES:  # servers in a cluster are told the same
            found.simulator += ["--block-size", str(size)]
    published = json.loads(found.simulator[1])
    pods["socketPort"] = int(published["endpoint"].rpartition(":")[2])
    if pods.get("replaySocketPort"):
        pods["replaySocketPort"] = int(published["replay_endpoint"].rpartition(":")[2])
