"""One picker process over a fixed list of endpoints: started, awaited, stopped."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import aiohttp
import yaml

from epp.demo.ports import free_ports
from epp.demo.processes import end


@dataclass(frozen=True, slots=True)
class Served:
    """An endpoint for the endpoints file."""

    host: str
    port: int
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rank: int = 0


def endpoints_file(endpoints: Sequence[Served]) -> str:
    """What `file-discovery` reads."""
    entries = [
        {
            "name": endpoint.name or f"server-{number}",
            "address": endpoint.host,
            "port": str(endpoint.port),
            "labels": dict(endpoint.labels),
            "rank": endpoint.rank,
        }
        for number, endpoint in enumerate(endpoints)
    ]
    return yaml.safe_dump({"endpoints": entries})


def with_file_discovery(config: str, endpoints: Path) -> str:
    """A configuration that takes its endpoints from a file; "" is the default configuration."""
    loaded = yaml.safe_load(config) or {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    if "plugins" not in loaded:
        # Naming any plugin switches the default scorers off, so they are named as well.
        scorers = {"queue-scorer": 2, "kv-cache-utilization-scorer": 2, "prefix-cache-scorer": 3}
        loaded["plugins"] = [{"type": scorer} for scorer in scorers]
        refs = [{"pluginRef": scorer, "weight": weight} for scorer, weight in scorers.items()]
        loaded["schedulingProfiles"] = [{"name": "default", "plugins": refs}]
    parameters = {"path": str(endpoints), "watchFile": True}
    loaded["plugins"].append({"name": "endpoints-file", "type": "file-discovery", "parameters": parameters})
    loaded.setdefault("dataLayer", {})["discovery"] = {"pluginRef": "endpoints-file"}
    return yaml.safe_dump(loaded, sort_keys=False)


class PickerProcess:
    """`async with PickerProcess(folder, endpoints) as picker:`. The log is `folder/picker.log`."""

    def __init__(
        self,
        folder: Path,
        endpoints: Sequence[Served],
        *,
        config: str = "",
        flags: Sequence[str] = (),
        tls: bool = True,
    ) -> None:
        self._folder = folder
        self.endpoints_path = folder / "endpoints.yaml"
        self.set_endpoints(endpoints)
        self.config_path = folder / "epp.yaml"
        self.config_path.write_text(with_file_discovery(config, self.endpoints_path))
        self.grpc_port, self.health_port, self.metrics_port = free_ports(3)
        self.tls = tls
        self._flags = list(flags)
        self.process: asyncio.subprocess.Process | None = None

    def set_endpoints(self, endpoints: Sequence[Served]) -> None:
        """Write the list that the picker watches."""
        self.endpoints_path.write_text(endpoints_file(endpoints))

    @property
    def pid(self) -> int:
        """The process id."""
        if self.process is None:
            raise RuntimeError("the picker has not been started")
        return self.process.pid

    async def __aenter__(self) -> PickerProcess:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start and wait until it is ready; RuntimeError with the log when it ends instead."""
        command = [sys.executable, "-m", "epp", "serve", "--config-file", str(self.config_path)]
        command += ["--grpc-port", str(self.grpc_port), "--grpc-health-port", str(self.health_port)]
        command += ["--metrics-port", str(self.metrics_port), "--metrics-endpoint-auth=false", "--tracing=false"]
        command += [f"--secure-serving={str(self.tls).lower()}", "--health-checking", "--drain-timeout=1s"]
        with (self._folder / "picker.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, *self._flags, stdout=log, stderr=log)
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise

    async def stop(self, seconds: float = 10.0) -> int | None:
        """SIGTERM, then wait; kill after `seconds`. Returns the exit status."""
        process = self.process
        if process is None:
            return None
        await end(process, seconds)
        return process.returncode

    async def metrics(self) -> str:
        """The metrics page."""
        return await self._get("/metrics")

    def log(self) -> str:
        """What it wrote so far."""
        path = self._folder / "picker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def _get(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            answer.raise_for_status()
            return await answer.text()

    async def _wait_until_ready(self, seconds: float = 30.0) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            if self.process is None or self.process.returncode is not None:
                raise RuntimeError(f"the picker did not start:\n{self.log()[-4000:]}")
            try:
                await self._get("/readyz")
                return
            except aiohttp.ClientError:
                if asyncio.get_running_loop().time() > deadline:
                    raise TimeoutError(
                        f"the picker was not ready after {seconds:.0f} s:\n{self.log()[-4000:]}"
                    ) from None
                await asyncio.sleep(0.05)
