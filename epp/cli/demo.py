"""`epp demo`: simulated model servers, the picker and a real Envoy on this machine, and a conversation through them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import yaml

from epp.api.errors import ConfigError
from epp.api.plugin import SchedulingResult
from epp.api.request import InferenceRequest
from epp.cli.flags import ServeOptions
from epp.cli.output import table
from epp.cli.serve import loop_factory
from epp.cli.serving import Picker
from epp.demo.conversation import TURN, Turn, converse
from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import Served, endpoints_file, with_file_discovery
from epp.demo.ports import free_ports
from epp.demo.screen import SUMMARY, Choice, Screen, summary
from epp.telemetry.logs import log_level, start_logging

MODEL = "demo-model"


def run(argv: Sequence[str]) -> int:
    """0 after Ctrl-C (or the conversation with --once), 1 when something could not be started."""
    parser = argparse.ArgumentParser(prog="epp demo", description=__doc__)
    parser.add_argument("--servers", type=int, default=4, help="simulated model servers (4)")
    parser.add_argument("--config", type=Path, help="an EndpointPickerConfig instead of the default one")
    parser.add_argument("--port", type=int, default=0, help="port of the gateway (0: any that is free)")
    parser.add_argument("--once", action="store_true", help="end after the conversation instead of staying up")
    parser.add_argument("--output", choices=("text", "json"), default="text", help="json: one object, implies --once")
    options = parser.parse_args(argv)
    if options.servers < 1:
        parser.error("--servers: at least 1")
    logs = start_logging(level=log_level(1))
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_demo(options))
    except (ConfigError, OSError, RuntimeError, ValueError) as error:
        print(f"epp demo: {error}", file=sys.stderr)
        return 1
    finally:
        logs.stop()


async def _demo(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    screen = Screen()
    quiet = options.output == "json"
    choices: dict[str, Choice] = {}
    names: dict[str, str] = {}
    talking = True

    def observe(request: InferenceRequest, result: SchedulingResult) -> None:
        choice = _choice(request, result, names)
        if len(choices) > 10_000:
            choices.clear()
        choices[choice.request_id] = choice
        if not talking:
            screen.routed(choice)

    def told(turn: Turn) -> None:
        if not quiet:
            screen.decided(turn, choices.get(turn.request_id))

    def step(text: str) -> None:
        if not quiet:
            screen.step(text)

    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epp-demo-")))
        config = options.config.read_text() if options.config else ""
        served = await stack.enter_async_context(_simulated(_roles(config, options.servers), folder))
        names.update({f"{server.host}:{server.port}": server.name for server in served})
        step(f"{len(served)} simulated servers on ports {served[0].port} to {served[-1].port}")

        (folder / "endpoints.yaml").write_text(endpoints_file(served))
        grpc_port, health_port, metrics_port, listen, admin = free_ports(5)
        serve_options = ServeOptions(
            grpc_port=grpc_port,
            grpc_health_port=health_port,
            metrics_port=metrics_port,
            listen_address="127.0.0.1",
            health_checking=True,
            config_text=with_file_discovery(config, folder / "endpoints.yaml"),
            metrics_endpoint_auth=False,
            tracing=False,
            allow_experimental_plugins=True,
        )
        picker = Picker(serve_options, observers=[observe])
        await picker.start()
        stack.push_async_callback(picker.stop)
        step(f"the picker: ext_proc on port {grpc_port}, metrics on http://127.0.0.1:{metrics_port}/metrics")

        gateway = Gateway("standalone", options.port or listen, admin, grpc_port, health_check=True)
        envoy = await stack.enter_async_context(Envoy(gateway, folder))
        step(f"Envoy: {envoy.url}, admin on http://127.0.0.1:{admin}")
        await _healthy(envoy)
        step("all healthy; four users talk to it, two of them behind each system prompt")

        turns = await converse(envoy.url, MODEL, told=told)
        talking = False
        failed = [turn for turn in turns if turn.status != 200]
        if quiet:
            print(json.dumps(_report(served, turns, choices), indent=1))
        else:
            rows = summary([server.name for server in served], turns, choices)
            table("Where the requests went", SUMMARY, rows)
        if failed:
            print(f"epp demo: {len(failed)} of {len(turns)} requests failed, the first with {failed[0].status}")
            return 1
        if options.once or quiet:
            return 0
        _invite(envoy.url, metrics_port)
        await stop.wait()
    return 0


def _choice(request: InferenceRequest, result: SchedulingResult, names: dict[str, str]) -> Choice:
    target = result.target
    servers = [names.get(address, address) for address in target.candidates.addresses()]
    by_server: dict[str, dict[str, float]] = {server: {} for server in servers}
    for scorer, scores in target.by_scorer.items():
        for server, score in zip(servers, scores.tolist(), strict=True):
            by_server[server][scorer] = score
    picked = target.picked[0].host_port
    totals = dict(zip(servers, target.scores.tolist(), strict=True))
    reader = result.prefill.picked[0].host_port if result.prefill is not None else ""
    name = request.headers.get(TURN, request.id)
    return Choice(name, names.get(picked, picked), totals, by_server, prefill=names.get(reader, reader))


def _roles(config: str, count: int) -> list[str]:
    """A role for each server; without a name where the configuration tells no phases apart."""
    plugins = (yaml.safe_load(config) or {}).get("plugins") or ()
    if count < 2 or "prefill-filter" not in {plugin.get("type") for plugin in plugins}:
        return [""] * count
    decode = (count + 1) // 2
    return ["decode"] * decode + ["prefill"] * (count - decode)


@contextlib.asynccontextmanager
async def _simulated(roles: Sequence[str], folder: Path) -> AsyncIterator[list[Served]]:
    """The servers in a process of their own, so that the picker's loop stays its own."""
    count = len(roles)
    first = _consecutive_ports(count)
    command = [sys.executable, "-m", "epp", "sim", "--model", MODEL, "--port", str(first), "--instances", str(count)]
    command += ["--pd-sidecar", "--enable-kvcache", "--kv-cache-size", "4096", "--max-model-len", "8192"]
    command += ["--prefill-overhead", "10ms", "--prefill-time-per-token", "250us", "--inter-token-latency", "5ms"]
    with (folder / "simulator.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    try:
        await _listening(first + count - 1, process, folder / "simulator.log")
        yield [
            Served(
                "127.0.0.1",
                first + number,
                name=f"{role or 'server'}-{number + 1}",
                labels={"llm-d.ai/role": role} if role else {},
            )
            for number, role in enumerate(roles)
        ]
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _consecutive_ports(count: int) -> int:
    """The first of `count` free ports in a row: the simulator numbers its instances."""
    for _ in range(50):
        first = free_ports(1)[0]
        if first + count < 65_536 and all(_is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} free ports in a row on 127.0.0.1")


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _listening(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    for _ in range(600):
        if process.returncode is not None:
            raise RuntimeError(f"the simulated servers did not start:\n{log.read_text()}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("the simulated servers did not start within 30 s")


async def _healthy(envoy: Envoy) -> None:
    """Until Envoy's own health check has found the picker ready."""
    for _ in range(200):
        stats = await envoy.stats("cluster.picker.")
        if stats.get("membership_healthy", 0) >= 1 and stats.get("health_check.success", 0) >= 1:
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"Envoy does not see the picker as healthy:\n{envoy.log_tail()}")


def _report(served: Sequence[Served], turns: Sequence[Turn], choices: dict[str, Choice]) -> dict[str, object]:
    return {
        "servers": [dataclasses.asdict(server) | {"labels": dict(server.labels)} for server in served],
        "requests": [
            dataclasses.asdict(turn)
            | {"server": choices[turn.request_id].server, "scores": choices[turn.request_id].scores}
            | {"prefill": choices[turn.request_id].prefill}
            for turn in turns
            if turn.request_id in choices
        ],
    }


def _invite(url: str, metrics_port: int) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16})
    print()
    print("Try it (each request shows up here, Ctrl-C ends the demo):")
    print()
    print(f"  curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")
    print(f"  curl -s http://127.0.0.1:{metrics_port}/debug/plugins/state")
    print()
    sys.stdout.flush()
