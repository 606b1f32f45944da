"""Real vLLM servers on loopback: started, awaited, killed, started again; and who listens to what they publish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import zmq
import zmq.asyncio

from epp.demo.picker import Served
from epp.demo.processes import end

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("VLLM_VENV", ROOT / ".venv-vllm"))
BLOCK = 32
"""Tokens; the smallest block of vLLM's attention on a CPU."""

START_SECONDS = 240.0
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every server pins itself to the first core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # two processes instead of three
    "VLLM_SERVER_DEV_MODE": "1",  # /reset_prefix_cache
    "OMP_NUM_THREADS": "1",
}


@dataclass(slots=True)
class VllmServer:
    """One server. `rank` n publishes on `events + n` and replays on `replay + n`, as the ranks of one pod do."""

    port: int
    rank: int
    events: int
    replay: int
    models: Path
    folder: Path
    blocks: int
    seed: str = "0"
    _process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def served(self) -> Served:
        labels = {"llm-d.ai/inference-serving": "true"}
        return Served("127.0.0.1", self.port, f"vllm-{self.rank}", labels, rank=self.rank)

    async def start(self) -> None:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events + self.rank}",
            "replay_endpoint": f"tcp://*:{self.replay + self.rank}",
            "topic": f"kv@{self.address}@tiny",
        }
        command = [str(VENV / "bin" / "vllm"), "serve", str(self.models / "base"), "--served-model-name", "tiny"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager"]
        command += ["--distributed-executor-backend", "uni", "--max-model-len", "2048", "--block-size", str(BLOCK)]
        command += ["--num-gpu-blocks-override", str(self.blocks), "--enable-prefix-caching"]
        command += ["--enable-prompt-tokens-details", "--enable-scale-out", "--enable-lora", "--max-loras", "2"]
        command += ["--max-lora-rank", "8", "--lora-modules"]
        command += [f"{name}={self.models / name}" for name in ("lora-a", "lora-b")]
        command += ["--kv-events-config", json.dumps(events)]
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONHASHSEED": self.seed}
        with (self.folder / f"vllm-{self.rank}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    async def ready(self) -> None:
        """Wait until it answers. RuntimeError with the end of its log when it does not."""
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline and self._process is not None and self._process.returncode is None:
                try:
                    async with session.get(f"http://{self.address}/health") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.5)
        log = (self.folder / f"vllm-{self.rank}.log").read_text(errors="replace")
        raise RuntimeError(f"vLLM on {self.address} does not answer:\n{log[-4000:]}")

    async def reset(self) -> None:
        """Empty the prefix cache."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{self.address}/reset_prefix_cache") as answer,
        ):
            answer.raise_for_status()

    def kill(self) -> None:
        """As a machine that loses its power: the server, and the engine, which is a process of its own."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        process = self._process
        if process is not None:
            await end(process, 20.0)
            self.kill()  # whatever it left behind
            self._process = None


@dataclass(slots=True)
class Evictions:
    """When each server told of blocks that it threw out; `address` -> times of `time.monotonic`."""

    seen: dict[str, list[float]] = field(default_factory=dict)

    def during(self, address: str, began: float, ended: float) -> bool:
        """Whether there was one in that time, with room for the way of the message."""
        return any(began - 0.05 <= at <= ended + 0.2 for at in self.seen.get(address, ()))


@asynccontextmanager
async def watched(servers: list[VllmServer]) -> AsyncIterator[Evictions]:
    """Listen to the servers beside the picker."""
    evictions = Evictions()
    context = zmq.asyncio.Context()
    sockets = []
    for server in servers:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.SUBSCRIBE, b"kv@")
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{server.events + server.rank}")
        sockets.append(socket)

    async def follow(socket: zmq.asyncio.Socket, times: list[float]) -> None:
        while True:
            _, _, payload = await socket.recv_multipart()
            if any(event.get("type") == "BlockRemoved" for event in msgspec.msgpack.decode(payload)[1]):
                times.append(time.monotonic())

    tasks = [
        asyncio.create_task(follow(socket, evictions.seen.setdefault(server.address, [])))
        for server, socket in zip(servers, sockets, strict=True)
    ]
    try:
        yield evictions
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        context.destroy(linger=0)
