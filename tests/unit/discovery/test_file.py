"""Endpoints from a file: loading, watching, resolving."""

import asyncio
import logging
import os
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from epp.api import ConfigError, Endpoint, EndpointTable, PluginContext
from epp_plugins.discovery import file as discovery_file
from epp_plugins.discovery.file import FileDiscovery


class Errors:
    """A metrics registry with one counter."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def counter(self, name: str, help: str, labels: tuple[str, ...]) -> "Errors":
        assert (name, labels) == ("datalayer_discovery_errors_total", ("plugin_name", "reason"))
        return self

    def labels(self, plugin: str, reason: str) -> Any:
        counts = self.counts

        class Child:
            def inc(self, n: float) -> None:
                counts[reason] += int(n)

        return Child()


class Setup:
    def __init__(self, path: Path, **parameters: Any) -> None:
        self.path = path
        self.table = EndpointTable()
        self.errors = Errors()
        context = PluginContext(
            "my-endpoints",
            time.monotonic,
            random.Random(1),
            logging.getLogger("discovery"),
            self.table,
            lambda name: pytest.fail(name),
            metrics=self.errors,
        )
        params = msgspec.convert({"path": str(path), **parameters}, FileDiscovery.Params)
        self.plugin = FileDiscovery(params, context)

    def write(self, *entries: str) -> None:
        self.path.write_text("endpoints:\n" + "".join(f"- {entry}\n" for entry in entries))

    @property
    def hosts(self) -> list[str]:
        return sorted(self.table.all(0.0).addresses())


def pod(index: int, **fields: str) -> str:
    values = {"name": f"pod-{index}", "address": f"10.0.0.{index}", "port": "'8000'", **fields}
    return "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the file system announces nothing
        await asyncio.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_file, "_LOOK", 0.01)


@pytest.fixture
async def watched(tmp_path: Path, quick: None) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path / "endpoints.yaml", watchFile=True)
    setup.write(pod(1), pod(2))
    await setup.plugin.start()
    yield setup
    await setup.plugin.stop()


async def test_start_returns_with_the_list_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(tmp_path / "endpoints.yaml")
    setup.write(
        pod(1, labels="{role: decode}"), pod(2, address="fd00::2"), "{name: broken}", pod(1, address="10.0.0.7")
    )
    await setup.plugin.start()
    assert setup.hosts == ["10.0.0.1:8000", "[fd00::2]:8000"]
    assert setup.table.all(0.0).has_label("role", ["decode"]).sum() == 1
    assert setup.errors.counts == {"entry": 2}
    messages = [record.getMessage() for record in caplog.records]
    assert any("endpoints[2] left out: address is None" in message for message in messages)
    assert any("endpoints[3] left out: default/pod-1 is already entry 0" in message for message in messages)
    state = setup.plugin.dump_state()
    assert state["endpoints"] == 2
    assert [bad["index"] for bad in state["badEntries"]] == [2, 3]
    await setup.plugin.stop()


async def test_the_log_of_bad_entries_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(tmp_path / "endpoints.yaml")
    setup.write(*["{name: broken}"] * 500)
    await setup.plugin.start()
    assert len(caplog.records) == 21
    assert "480 more" in caplog.records[-1].getMessage()
    assert setup.errors.counts == {"entry": 500}
    await setup.plugin.stop()


@pytest.mark.parametrize("content", [None, "rubbish: [", "- a"])
async def test_start_fails_without_a_usable_file(tmp_path: Path, content: str | None) -> None:
    setup = Setup(tmp_path / "endpoints.yaml")
    if content is not None:
        setup.path.write_text(content)
    with pytest.raises(ConfigError, match=r"endpoints\.yaml"):
        await setup.plugin.start()
    await setup.plugin.stop()


async def test_without_watching_the_file_is_read_once(tmp_path: Path, quick: None) -> None:
    setup = Setup(tmp_path / "endpoints.yaml")
    setup.write(pod(1))
    await setup.plugin.start()
    setup.write(pod(2))
    await asyncio.sleep(0.1)
    assert setup.hosts == ["10.0.0.1:8000"]
    await setup.plugin.stop()


async def test_a_write_in_place(watched: Setup) -> None:
    watched.table.columns["waiting"][:] = 5.0
    watched.write(pod(2), pod(3))
    await until(lambda: watched.hosts == ["10.0.0.2:8000", "10.0.0.3:8000"])
    kept, new = watched.table.row_of("10.0.0.2:8000"), watched.table.row_of("10.0.0.3:8000")
    assert watched.table.columns["waiting"][kept] == 5.0
    assert np.isnan(watched.table.columns["waiting"][new])


async def test_a_rename_over_the_file(watched: Setup) -> None:
    other = watched.path.with_suffix(".new")
    other.write_text(f"endpoints:\n- {pod(9)}\n")
    os.replace(other, watched.path)
    await until(lambda: watched.hosts == ["10.0.0.9:8000"])


async def test_a_symbolic_link_that_is_swapped(tmp_path: Path, quick: None) -> None:
    for index in (1, 2):
        (tmp_path / f"v{index}").mkdir()
        (tmp_path / f"v{index}" / "endpoints.yaml").write_text(f"endpoints:\n- {pod(index)}\n")
    (tmp_path / "data").symlink_to("v1")
    (tmp_path / "endpoints.yaml").symlink_to("data/endpoints.yaml")
    setup = Setup(tmp_path / "endpoints.yaml", watchFile=True)
    await setup.plugin.start()
    assert setup.hosts == ["10.0.0.1:8000"]
    (tmp_path / "data.new").symlink_to("v2")
    os.replace(tmp_path / "data.new", tmp_path / "data")
    await until(lambda: setup.hosts == ["10.0.0.2:8000"])
    await setup.plugin.stop()


async def test_rubbish_keeps_the_last_good_list(watched: Setup, caplog: pytest.LogCaptureFixture) -> None:
    watched.path.write_text("endpoints: [{{{{")
    await until(lambda: watched.errors.counts["file"] == 1)
    assert watched.hosts == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert "the last list stays in use" in caplog.text
    assert "neither YAML nor JSON" in watched.plugin.dump_state()["lastError"]
    watched.write(pod(4))
    await until(lambda: watched.hosts == ["10.0.0.4:8000"])
    assert watched.plugin.dump_state()["lastError"] == ""


async def test_a_file_that_goes_and_comes_back(watched: Setup) -> None:
    watched.path.unlink()
    await until(lambda: watched.errors.counts["file"] == 1)
    assert watched.hosts == ["10.0.0.1:8000", "10.0.0.2:8000"]
    watched.write(pod(5))
    await until(lambda: watched.hosts == ["10.0.0.5:8000"])


async def test_an_unexpected_error_keeps_the_watch_alive(watched: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(discovery_file, "parse_endpoint_file", lambda content: 1 / 0)
        watched.write(pod(6))
        await until(lambda: watched.errors.counts["file"] == 1)
    watched.write(pod(6), pod(7))
    await until(lambda: watched.hosts == ["10.0.0.6:8000", "10.0.0.7:8000"])


async def test_endpoints_of_others_are_left_alone(watched: Setup) -> None:
    watched.table.add(Endpoint("foreign", "10.9.9.9", 1))
    watched.write(pod(1))
    await until(lambda: watched.hosts == ["10.0.0.1:8000", "10.9.9.9:1"])


class Names:
    """The resolver: host name -> addresses."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, **known: list[str]) -> None:
        self.known = {name.replace("_", "-"): addresses for name, addresses in known.items()}
        monkeypatch.setattr(loop, "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(self, host: str, port: None, *, type: int) -> list[Any]:
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, type, 6, "", (address, 0)) for address in self.known[host]]


async def test_host_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(asyncio.get_running_loop(), monkeypatch, vllm_0=["10.1.0.1", "10.1.0.2"], twin=["10.1.0.1"])
    setup = Setup(tmp_path / "endpoints.yaml", resolveInterval="10ms")
    setup.write(pod(1, address="vllm-0"), pod(2, address="nowhere"), pod(3, address="twin"), pod(4))
    await setup.plugin.start()
    assert setup.hosts == ["10.0.0.4:8000", "10.1.0.1:8000"]
    assert setup.table.endpoints[setup.table.row_of("10.1.0.1:8000") or 0].name == "pod-1"  # type: ignore[union-attr]
    assert setup.errors.counts["resolve"] >= 2  # nowhere cannot be resolved, and twin has the address of another
    names.known["vllm-0"] = ["10.1.0.7", "10.1.0.1"]  # it keeps the address that it has
    names.known["nowhere"] = ["10.1.0.9"]
    await until(lambda: setup.hosts == ["10.0.0.4:8000", "10.1.0.1:8000", "10.1.0.9:8000"])
    names.known["vllm-0"] = ["10.1.0.7"]
    await until(lambda: "10.1.0.7:8000" in setup.hosts)
    names.known.clear()
    errors = setup.errors.counts["resolve"]
    await until(lambda: setup.errors.counts["resolve"] > errors + 3)
    assert "10.1.0.7:8000" in setup.hosts  # a resolver that is down changes nothing
    await setup.plugin.stop()


async def test_a_real_resolver(tmp_path: Path) -> None:
    setup = Setup(tmp_path / "endpoints.yaml")
    setup.write(pod(1, address="localhost"))
    await setup.plugin.start()
    assert setup.hosts in (["127.0.0.1:8000"], ["[::1]:8000"])
    await setup.plugin.stop()


async def test_a_newer_list_wins_over_a_slow_resolver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    gate = asyncio.Event()
    names = Names(asyncio.get_running_loop(), monkeypatch, slow=["10.1.0.1"])

    async def slow(host: str, port: None, *, type: int) -> list[Any]:
        await gate.wait()
        return await names.getaddrinfo(host, port, type=type)

    gate.set()
    setup = Setup(tmp_path / "endpoints.yaml", watchFile=True, resolveInterval="10ms")
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slow)
    setup.write(pod(1, address="slow"))
    await setup.plugin.start()
    gate.clear()
    await asyncio.sleep(0.05)  # a look-up is under way now
    setup.write(pod(2))
    await until(lambda: len(setup.plugin._entries) == 1 and setup.plugin._entries[0].name == "pod-2")
    gate.set()
    await until(lambda: setup.hosts == ["10.0.0.2:8000"])
    await setup.plugin.stop()


@pytest.mark.parametrize(
    "bad", [{}, {"path": ""}, {"path": "x", "resolveInterval": "soon"}, {"path": "x", "watch": True}]
)
def test_parameters_that_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, FileDiscovery.Params)
