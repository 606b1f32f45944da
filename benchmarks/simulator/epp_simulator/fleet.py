"""Many simulated servers in one process, on consecutive ports."""

from __future__ import annotations

from types import TracebackType

from aiohttp import web

from epp_simulator.kv_events import EventEncoder, schema
from epp_simulator.options import SimOptions
from epp_simulator.publisher import EventPublisher
from epp_simulator.server import SimulatedServer
from epp_simulator.tls import server_context


class Fleet:
    """`async with Fleet(options) as fleet:` serves until the block ends. Port 0 lets the system choose.

    Ranks of all servers are numbered through where ports are given out: engine r of server i has event ports that are
    `i * data-parallel-size + r` above the configured ones.
    """

    def __init__(self, options: SimOptions) -> None:
        self.options = options
        self.servers: list[SimulatedServer] = []
        self._ssl = server_context(options)
        self._host = options.host
        self._runners: list[web.AppRunner] = []
        ranks = options.data_parallel_size
        for index in range(options.instances * (ranks if options.data_parallel_external_lb else 1)):
            port = options.port + index if options.port else 0
            seed = options.seed * 1009 + index
            if options.data_parallel_external_lb:
                self.servers.append(SimulatedServer(options, port, seed, first_rank=index % ranks))
            else:
                self.servers.append(SimulatedServer(options, port, seed, ranks=ranks))

    async def __aenter__(self) -> Fleet:
        try:
            for server in self.servers:
                # As vLLM: a client that goes away ends its request.
                runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
                await runner.setup()
                self._runners.append(runner)
                site = web.TCPSite(runner, self._host, server.port, ssl_context=self._ssl)
                try:
                    await site.start()
                except OSError as error:
                    what = error.strerror or error
                    raise OSError(f"--port {server.port}: {what}: end what has it, or give another port") from error
                server.port = runner.addresses[0][1]
                self._publish(server)
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
        for server in self.servers:
            for engine in server.engines:
                engine.publish = None  # what the last requests leave behind is told to nobody
            for publisher in server.publishers:
                await publisher.close()
            server.publishers.clear()

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        """`(host, port)` of each server."""
        return [(self._host, server.port) for server in self.servers]

    def _publish(self, server: SimulatedServer) -> None:
        options, config = self.options, self.options.events
        if not config.publishes:
            return
        host = options.advertise_host or options.host
        # Servers with one rank each follow one another, whether they are instances or ranks.
        before = self.servers.index(server) * len(server.engines)
        for position, engine in enumerate(server.engines):
            encoder = EventEncoder(
                schema(options.kv_events_schema),
                options.block_size,
                engine.rank,
                int_hashes=options.kv_events_int_hashes,
                tagged=options.kv_events_tagged_extra_keys,
                lora_ids=server.loras,
            )
            names = {"host": host, "port": server.port, "model": options.names[0]}
            publisher = EventPublisher(config.for_rank(before + position, **names), encoder, host)
            server.publishers.append(publisher)
            engine.publish = publisher.publish
