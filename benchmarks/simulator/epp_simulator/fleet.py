"""Many simulated servers in one process, on consecutive ports."""

from __future__ import annotations

from types import TracebackType

from aiohttp import web

from epp_simulator.options import SimOptions
from epp_simulator.server import SimulatedServer


class Fleet:
    """`async with Fleet(options) as fleet:` serves until the block ends. Port 0 lets the system choose."""

    def __init__(self, options: SimOptions) -> None:
        self.servers = [SimulatedServer(options, index) for index in range(options.instances)]
        self._host = options.host
        self._runners: list[web.AppRunner] = []

    async def __aenter__(self) -> Fleet:
        try:
            for server in self.servers:
                runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=1.0)
                await runner.setup()
                self._runners.append(runner)
                site = web.TCPSite(runner, self._host, server.port if server.options.port else 0)
                await site.start()
                server.port = runner.addresses[0][1]
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop all servers."""
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """`(host, port)` of each server."""
        return [(self._host, server.port) for server in self.servers]
