"""Three replicas behind an Envoy with health checks: the leader goes, again and again, in good order and not.

`LEADERS=4` for a shorter storm. Prints how long each kill was felt (`pytest -s`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.ports import free_ports
from epp.demo.processes import end
from tests.kubernetes.api_server import LEASES, PODS, POOLS, ApiServer, pod, pool

ROUNDS = int(os.environ.get("LEADERS", "20"))
LEASE, RETRY, HEALTH = 1.0, 0.2, 0.25
GAP = 2 * LEASE + 4 * HEALTH + 6.0
"""After a kill nobody leads until the lease has run out and the gateway has seen the next one; with room for a slow
machine."""


@dataclass
class Replica:
    """One picker process, started again under the same name and ports as a pod of a Deployment would be."""

    name: str
    folder: Path
    kubeconfig: Path
    process: asyncio.subprocess.Process | None = None
    ports: tuple[int, int, int] = (0, 0, 0)

    async def start(self) -> None:
        if not any(self.ports):
            grpc, health, metrics = free_ports(3)
            self.ports = grpc, health, metrics
        grpc, health, metrics = self.ports
        command = [sys.executable, "-m", "epp", "serve", "--pool-name=pool", "--pool-namespace=ns", "--health-checking"]
        command += [f"--grpc-port={grpc}", f"--grpc-health-port={health}", f"--metrics-port={metrics}"]
        command += ["--listen-address=127.0.0.1", "--secure-serving=false", "--tracing=false", "--drain-timeout=4s"]
        command += ["--ha-enable-leader-election", f"--ha-lease-duration={LEASE}s", f"--ha-retry-period={RETRY}s"]
        command += ["--metrics-endpoint-auth=false"]
        command += ["--config-text", "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "POD_NAME": self.name, "NAMESPACE": "ns"}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment)

    async def warm(self) -> None:
        """Until it could lead."""
        url = f"http://127.0.0.1:{self.ports[2]}/metrics"
        async with aiohttp.ClientSession() as client:
            for _ in range(600):
                assert self.process is not None
                assert self.process.returncode is None, self.name
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get(url) as answer:
                        if "leader_election_eligible 1" in await answer.text():
                            return
                await asyncio.sleep(0.1)
        raise AssertionError(f"{self.name} does not get ready")

    async def stop(self) -> None:
        if self.process is not None:
            await end(self.process, 15.0)


@contextlib.asynccontextmanager
async def server(address: str) -> AsyncIterator[int]:
    """A model server."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Load:
    """Clients that never stop; every answer with its time."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[float, int]] = []
        self._url = url
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30))
        self._tasks = [asyncio.create_task(self._run()) for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def _run(self) -> None:
        while True:
            body = {"model": "m", "prompt": f"{time.monotonic()}"}
            began = time.monotonic()
            try:
                async with self._client.post(self._url + "/v1/completions", json=body) as answer:
                    await answer.read()
                    self.answers.append((began, answer.status))
            except aiohttp.ClientError:
                self.answers.append((began, 0))
            await asyncio.sleep(0.02)

    async def good_again(self) -> None:
        """Until ten answers in a row are good."""
        for _ in range(3000):
            if [status for _, status in self.answers[-10:]] == [200] * 10:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.answers[-20:])


@pytest.mark.timeout(420)
async def test_the_leader_goes_again_and_again(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiServer().serving())
        port = await stack.enter_async_context(server("127.0.0.1"))
        api.put(POOLS, pool("pool", port))
        api.put(PODS, pod("p0", "127.0.0.1"))
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(api.kubeconfig())
        replicas = [Replica(f"epp-{n}", tmp_path, kubeconfig) for n in range(3)]
        for replica in replicas:
            await replica.start()
            stack.push_async_callback(replica.stop)
        listen, admin = free_ports(2)
        gateway = Gateway(
            "standalone",
            listen,
            admin,
            replicas[0].ports[0],
            picker_tls=False,
            pickers=tuple(replica.ports[0] for replica in replicas),
            health_check=True,
            health_interval=f"{HEALTH}s",
        )
        envoy = await stack.enter_async_context(Envoy(gateway, tmp_path))
        load = await stack.enter_async_context(Load(envoy.url))

        def leader() -> Replica | None:
            lease = api.objects.get(LEASES.format("ns"), {}).get("epp-ns-pool.llm-d.ai")
            holder = lease["spec"]["holderIdentity"] if lease else ""
            return next((replica for replica in replicas if holder.startswith(replica.name + "_")), None)

        await load.good_again()
        gaps: list[tuple[float, float]] = [(0.0, time.monotonic())]  # the start
        holders: set[str] = set()
        for number in range(ROUNDS):
            old = leader()
            assert old is not None
            assert old.process is not None
            holders.add(old.name)
            # As a Deployment replaces its pods: who has come back is ready before the next one goes.
            await asyncio.gather(*(replica.warm() for replica in replicas))
            assert leader() is old
            began = time.monotonic()
            if number % 2:
                old.process.send_signal(signal.SIGKILL)
            else:
                old.process.send_signal(signal.SIGTERM)
            while (new := leader()) is None or new is old:
                assert time.monotonic() - began < 30.0
                await asyncio.sleep(0.02)
            taken = time.monotonic() - began
            await asyncio.wait_for(old.process.wait(), 20)
            await old.start()
            await load.good_again()
            if number % 2:
                gaps.append((began, began + GAP))
                felt = max((at for at, status in load.answers if status != 200), default=began) - began
                print(f"killed: the lease was taken after {taken:.2f} s, the last request failed after {felt:.2f} s")
        failed = [(at, status) for at, status in load.answers if status != 200]
        outside = [each for each in failed if not any(begin - 0.5 <= each[0] <= stop for begin, stop in gaps)]
        assert outside == [], f"{len(failed)} failed of {len(load.answers)}"
        assert len(load.answers) > 100
        assert len(holders) > 1
        lease = api.objects[LEASES.format("ns")]["epp-ns-pool.llm-d.ai"]
        assert lease["spec"]["leaseTransitions"] >= ROUNDS
