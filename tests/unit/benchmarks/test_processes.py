"""The processes of a benchmark: what they answer, and that none is left behind."""

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from benchmarks import endpoints
from benchmarks.bench import Bench, Scale, WrongReplies
from benchmarks.inflight import read
from benchmarks.load import wrk
from benchmarks.load.generator import Load, LoadError, measure
from benchmarks.processes import StartError, Target, baseline, child, static_servers
from epp.extproc import ext_proc_pb2 as pb

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


def bench(folder: Path) -> Bench:
    return Bench(Scale.SMOKE, folder, lambda text: None)


def test_addresses_are_different_loopback_addresses() -> None:
    found = endpoints.addresses(1000)
    assert len(set(found)) == 1000
    assert all(socket.inet_aton(address)[0] == 127 for address in found)
    with pytest.raises(ValueError, match="0 endpoints"):
        endpoints.addresses(0)


async def test_static_servers_answer_the_page_at_every_address(tmp_path: Path) -> None:
    async with static_servers(tmp_path, 300) as served, aiohttp.ClientSession() as session:
        waiting = set()
        for each in (served[0], served[2], served[299]):
            async with session.get(f"http://{each.host}:{each.port}/metrics") as answer:
                page = await answer.text()
            assert len(page) > 70_000
            waiting |= {line.rpartition(" ")[2] for line in page.splitlines() if "num_requests_waiting{" in line}
        assert len(waiting) == 3


async def test_static_servers_stream_an_answer_at_once(tmp_path: Path) -> None:
    async with static_servers(tmp_path, 2) as (served, _), aiohttp.ClientSession() as session:
        url = f"http://{served.host}:{served.port}"
        bodies: list[Any] = [b'{"model": "m"}', b"x" * 200_000, _pieces(), b""]
        for body in bodies:  # on one connection
            async with session.post(f"{url}/v1/chat/completions", data=body) as answer:
                assert answer.content_type == "text/event-stream"
                text = await answer.text()
            events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
            assert events[-1] == "[DONE]"
            chunks = [json.loads(event) for event in events[:-1]]
            assert [len(chunk["choices"]) for chunk in chunks] == [1] * endpoints.TOKENS + [0]
            assert chunks[-1]["usage"]["completion_tokens"] == endpoints.TOKENS
            async with session.get(f"{url}/metrics") as answer:
                assert len(await answer.text()) > 70_000


async def _pieces() -> AsyncIterator[bytes]:
    for size in (1, 5000, 70_000):
        yield b"y" * size


async def test_wrk_asks_and_counts(tmp_path: Path) -> None:
    async with static_servers(tmp_path, 1) as (served,):
        url = f"http://{served.host}:{served.port}"
        seen = await wrk.ask(url, streams=4, seconds=1, first=0)
        assert seen.requests > 4
        assert 0 < seen.p50 <= seen.p99


async def test_wrk_tells_of_failures(tmp_path: Path, unused_tcp_port: int) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            writer.write(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n")

    with pytest.raises(LoadError, match=r"broke off|without a result"):
        await wrk.ask(f"http://127.0.0.1:{unused_tcp_port}", streams=2, seconds=1, first=0)
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LoadError, match="were refused"):
            await wrk.ask(f"http://127.0.0.1:{port}", streams=2, seconds=1, first=0)


async def test_every_prompt_of_wrk_is_another_one() -> None:
    bodies: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while len(bodies) < 500:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            bodies.append(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await asyncio.sleep(10)

    server = await asyncio.start_server(note, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await wrk.ask(f"http://127.0.0.1:{port}", streams=2, seconds=1, first=7_000_000)
    assert len(set(bodies)) == len(bodies) > 10
    assert all(json.loads(body)["stream"] and 3900 < len(body) < 4200 for body in bodies)
    assert json.loads(bodies[0])["messages"][0]["content"].startswith("700000")


async def test_static_servers_cannot_be_reached_from_outside() -> None:
    with endpoints.listen(0) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


def test_pages_keep_all_but_how_busy_a_server_is() -> None:
    captured = endpoints.PAGE.read_bytes()
    pages = endpoints.pages(captured)
    assert len(set(pages)) == endpoints.VARIANTS
    head, _, page = pages[3].partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(page) in head
    changed = [(old, new) for old, new in zip(captured.splitlines(), page.splitlines(), strict=True) if old != new]
    assert changed
    assert all(old.startswith((b"vllm:num_requests_waiting{", b"vllm:num_requests_running{")) for old, _ in changed)


async def test_a_child_is_gone_after_its_block_also_after_an_error(tmp_path: Path) -> None:
    async def broken() -> None:
        async with child("-c", "import time; print(7, flush=True); time.sleep(60)", log=tmp_path / "log") as (it, said):
            assert said == ["7"]
            seen.append(it.pid)
            raise RuntimeError("broken")

    seen: list[int] = []
    with pytest.raises(RuntimeError, match="broken"):
        await broken()
    assert not os.path.exists(f"/proc/{seen[0]}")


async def test_a_child_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no such luck"):
        async with child("-c", "raise SystemExit('no such luck')", log=tmp_path / "log"):
            raise AssertionError("it started")


def _requests() -> list[pb.ProcessingRequest]:
    headers = pb.HttpHeaders()
    return [
        pb.ProcessingRequest(request_headers=headers),
        pb.ProcessingRequest(request_body=pb.HttpBody(body=b"a" * 40_000)),
        pb.ProcessingRequest(request_body=pb.HttpBody(body=b"b" * 40_000, end_of_stream=True)),
        pb.ProcessingRequest(response_headers=headers),
        pb.ProcessingRequest(response_body=pb.HttpBody(body=b"chunk")),
        pb.ProcessingRequest(response_body=pb.HttpBody(body=b"", end_of_stream=True)),
    ]


@pytest.mark.parametrize("tls", [False, True])
async def test_the_echo_picker_picks_and_echoes(tmp_path: Path, *, tls: bool) -> None:
    async with baseline(tmp_path, tls=tls) as unit:
        if tls:
            # Its certificate is made at start, so the client trusts what the server shows.
            pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", unit.port))
            channel = grpc.aio.secure_channel(f"127.0.0.1:{unit.port}", grpc.ssl_channel_credentials(pem.encode()))
        else:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{unit.port}")
        async with channel:
            call = channel.stream_stream(
                METHOD,
                request_serializer=pb.ProcessingRequest.SerializeToString,
                response_deserializer=pb.ProcessingResponse.FromString,
            )
            replies = [reply async for reply in call(iter(_requests()))]
    kinds = [reply.WhichOneof("response") for reply in replies]
    assert kinds == [
        "request_headers",
        "request_body",
        "request_body",
        "response_headers",
        "response_body",
        "response_body",
    ]
    assert replies[0].dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == "10.0.0.1:8000"
    pieces = [reply.request_body.response.body_mutation.streamed_response for reply in replies[1:3]]
    assert b"".join(piece.body for piece in pieces) == b"a" * 40_000 + b"b" * 40_000
    assert [piece.end_of_stream for piece in pieces] == [False, True]
    chunks = [reply.response_body.response.body_mutation.streamed_response for reply in replies[4:]]
    assert [(chunk.body, chunk.end_of_stream) for chunk in chunks] == [(b"chunk", False), (b"", True)]


async def test_the_generator_counts_every_way_a_stream_can_end(tmp_path: Path) -> None:
    load = Load(body=2000, chunks=5, streams=8, connections=2, warm_up=0, seconds=20, once=200, reset=0.3)
    async with baseline(tmp_path) as unit:
        whole = await measure(Load(body=2000, chunks=2, streams=4, warm_up=0, seconds=20, once=50), unit.port, unit.pid)
        assert (whole["started"], whole["streams"], whole["errs"], whole["live"]) == (50, 50, 0, 0)
        assert whole["tn"] == 100
        assert whole["cpu_us"] > 0
        cut = await measure(load, unit.port, unit.pid)
        assert cut["errs"] == 0
        assert 20 < cut["resets"] < 120
        dropped = await measure(Load(chunks=50, streams=8, warm_up=0, seconds=0.6, disconnect=10), unit.port, unit.pid)
        assert dropped["errs"] == 0
        assert dropped["disconnects"] >= 1
        assert dropped["lost"] >= 1


async def test_a_server_that_answers_nonsense_is_no_measurement(tmp_path: Path) -> None:
    """A gRPC server without the method: every stream ends early."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        load = Load(chunks=1, streams=2, warm_up=0, seconds=5, once=4)
        with pytest.raises(WrongReplies, match=r"nobody: 4 wrong replies or lost streams .*closed early"):
            await bench(tmp_path).run(Target("nobody", port, os.getpid()), load)
    finally:
        await server.stop(None)


async def test_a_port_on_which_nothing_listens_is_told() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(LoadError, match="Connection refused"):
            await measure(Load(seconds=1), reserved.getsockname()[1], os.getpid())


def test_counters_that_cancel_each_other_are_seen() -> None:
    names = ("extproc_streams_inflight", "request_running", "inflight_requests", "inflight_tokens")
    page = "".join(f'llm_d_epp_{name}{{a="1"}} 1.0\nllm_d_epp_{name}{{a="2"}} -1.0\n' for name in names)
    assert read(page).requests == 2.0
    assert not read(page).nothing
    assert read("".join(f"llm_d_epp_{name} 0.0\n" for name in names)).nothing


def test_a_page_without_the_counters_is_no_zero() -> None:
    with pytest.raises(LookupError, match="--enable-grpc-stream-metrics"):
        read("# nothing\n")
