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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from epp.api.errors import ConfigError
from epp.api.plugin import SchedulingResult
from epp.api.request import InferenceRequest
from epp.cli.check import examine
from epp.cli.flags import ServeOptions, port
from epp.cli.output import table
from epp.cli.serve import loop_factory
from epp.cli.serving import Picker
from epp.demo.conversation import TURN, Turn, converse
from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import Served, endpoints_file, with_file_discovery
from epp.demo.ports import free_ports, free_ports_in_a_row, is_free
from epp.demo.screen import SUMMARY, Choice, Screen, summary
from epp.demo.servers import simulated
from epp.demo.stand_ins import roles, stand_in
from epp.telemetry.logs import log_level, start_logging

MODEL = "demo-model"
_MOST_SERVERS = 256


def run(argv: Sequence[str]) -> int:
    """0 after Ctrl-C (or the conversation with --once), 1 when something failed, 130: --once was interrupted."""
    parser = argparse.ArgumentParser(prog="epp demo", description=__doc__)
    parser.add_argument("--servers", type=int, default=4, help="simulated model servers (4)")
    parser.add_argument("--config", type=Path, help="an EndpointPickerConfig instead of the default one")
    parser.add_argument("--port", type=_port, default=0, help="port of the gateway (0: any that is free)")
    parser.add_argument("--once", action="store_true", help="end after the conversation instead of staying up")
    parser.add_argument("--output", choices=("text", "json"), default="text", help="json: one object, implies --once")
    options = parser.parse_args(argv)
    options.once |= options.output == "json"
    if not 1 <= options.servers <= _MOST_SERVERS:
        parser.error(f"--servers: from 1 to {_MOST_SERVERS}")
    logs = start_logging(level=log_level(1))
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_until_stopped(options))
    except (ConfigError, OSError, RuntimeError, ValueError, aiohttp.ClientError) as error:
        print(f"epp demo: {error}", file=sys.stderr)
        return 1
    finally:
        logs.stop()


def _port(text: str) -> int:
    try:
        return port(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _until_stopped(options: argparse.Namespace) -> int:
    """A signal ends the demo wherever it is; so does a closed terminal, of which its processes would not hear."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    working = asyncio.ensure_future(_demo(options))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return 130 if options.once else 0


async def _demo(options: argparse.Namespace) -> int:
    screen = Screen()
    quiet = options.output == "json"
    choices: dict[str, Choice] = {}
    names: dict[str, str] = {}
    weights: dict[str, dict[str, float]] = {}
    talking = True

    def observe(request: InferenceRequest, result: SchedulingResult) -> None:
        choice = _choice(request, result, names, weights)
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
        config, directory = _configuration(options.config)
        if options.port and not is_free(options.port):
            raise OSError(f"--port {options.port}: another process has that port: end it, or give another one")
        first = free_ports_in_a_row(options.servers)
        stand_ins = stand_in(
            config, f"http://127.0.0.1:{first}", lambda: free_ports_in_a_row(options.servers), directory
        )
        served = await stack.enter_async_context(
            simulated(
                roles(config, options.servers),
                first,
                folder,
                models=[MODEL, *stand_ins.models],
                flags=stand_ins.simulator,
                ranks=stand_ins.ranks,
            )
        )
        names.update({f"{server.host}:{server.port}": server.name for server in served})
        last = f" to {served[-1].port}" if len(served) > 1 else ""
        step(f"{_counted(len(served), 'simulated server')} on port{'s' * bool(last)} {first}{last}")
        for said in stand_ins.said:
            step(said)

        (folder / "endpoints.yaml").write_text(endpoints_file(served))
        grpc_port, health_port, metrics_port, listen, admin = free_ports(5)
        serve_options = ServeOptions(
            grpc_port=grpc_port,
            grpc_health_port=health_port,
            metrics_port=metrics_port,
            listen_address="127.0.0.1",
            health_checking=True,
            config_text=with_file_discovery(yaml.safe_dump(config), folder / "endpoints.yaml"),
            metrics_endpoint_auth=False,
            tracing=False,
            allow_experimental_plugins=True,
        )
        picker = Picker(serve_options, observers=[observe])
        await picker.start()
        stack.push_async_callback(picker.stop)
        weights |= {
            profile.name: {scorer.name: weight for scorer, weight in profile.scorers}
            for profile in picker.pool.assembly.profiles
        }
        step(f"the picker: ext_proc on port {grpc_port}, metrics on http://127.0.0.1:{metrics_port}/metrics")

        gateway = Gateway("standalone", options.port or listen, admin, grpc_port, health_check=True)
        envoy = await stack.enter_async_context(Envoy(gateway, folder))
        step(f"Envoy: {envoy.url}, admin on http://127.0.0.1:{admin}")
        await _ready(picker, step)
        await _healthy(envoy)
        step("all healthy; four users talk to it, two of them behind each system prompt")
        step("each request: who got it, and below why: weight x score, added up, beside the best other server")

        turns = await converse(envoy.url, MODEL, told=told)
        talking = False
        failed = [turn for turn in turns if turn.status != 200]
        if quiet:
            print(json.dumps(_report(served, turns, choices), indent=1))
        else:
            rows = summary([server.name for server in served], turns, choices)
            table("Where the requests went", SUMMARY, rows)
        if failed:
            said = (
                f"{len(failed)} of {len(turns)} requests failed, the first with {failed[0].status}: {failed[0].error}"
            )
            print(f"epp demo: {said}", file=sys.stderr)
            return 1
        if options.once:
            return 0
        _invite(envoy.url, metrics_port)
        await asyncio.get_running_loop().create_future()  # until a signal cancels it
    return 0


def _configuration(path: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The file as it is, and its directory. Raises `ConfigError` as `epp check` does, with the lines of the file."""
    if path is None:
        return {}, None
    examine(str(path), allow_experimental=True)
    return yaml.safe_load(path.read_text()) or {}, path.resolve().parent


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _choice(
    request: InferenceRequest,
    result: SchedulingResult,
    names: dict[str, str],
    weights: dict[str, dict[str, float]],
) -> Choice:
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
    return Choice(
        name,
        names.get(picked, picked),
        totals,
        by_server,
        weights=weights.get(target.profile, {}),
        prefill=names.get(reader, reader),
    )


async def _ready(picker: Picker, step: Callable[[str], None]) -> None:
    """Until no plugin is warming up."""
    for attempt in range(600):
        waiting = picker.waiting_for()
        if not waiting and picker.health.ready:
            return
        if attempt == 60:
            step(f"the picker waits for {waiting}")
        await asyncio.sleep(0.05)
    raise TimeoutError(f"the picker is not ready after 30 s: it waits for {picker.waiting_for()}")


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
            | {"server": choice.server, "scores": choice.scores, "weights": choice.weights, "prefill": choice.prefill}
            for turn in turns
            for choice in (choices.get(turn.request_id, Choice(turn.request_id, "", {}, {})),)
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
