"""HTTP/2 trailers, gRPC model servers, a picker that dies, and refusals by filters, through a real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import h2.config
import h2.connection
import h2.events

from epp.demo.envoy import Envoy
from epp.demo.envoy_config import Gateway
from epp.demo.picker import PickerProcess, Served
from epp.demo.ports import free_ports

PROMPT = {"model": "m", "prompt": "hello", "max_tokens": 5}


async def post_with_trailers(port: int, body: bytes) -> tuple[str, bytes]:
    """Status and body of a POST over HTTP/2 whose end is a trailer block instead of END_STREAM on the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    connection.send_headers(
        1,
        [
            (":method", "POST"),
            (":path", "/v1/completions"),
            (":scheme", "http"),
            (":authority", "gateway"),
            ("content-type", "application/json"),
            ("te", "trailers"),
        ],
    )
    connection.send_data(1, body)
    connection.send_headers(1, [("x-checksum", "abc")], end_stream=True)
    writer.write(connection.data_to_send())
    status, answer = "", b""
    try:
        while True:
            for event in connection.receive_data(await asyncio.wait_for(reader.read(65536), 10)):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[":status"]
                elif isinstance(event, h2.events.DataReceived):
                    answer += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, h2.events.StreamEnded):
                    return status, answer
            writer.write(connection.data_to_send())
    finally:
        writer.close()


async def test_a_request_that_ends_with_trailers_is_answered(stage: Any) -> None:
    # Not `istio`: with a retry policy on the route, Envoy 1.40 itself forwards such a body twice (see docs/limits.md).
    for flavour in ("standalone", "kgateway", "light"):
        async with stage(flavour) as s:
            status, answer = await post_with_trailers(s.envoy.gateway.listen_port, json.dumps(PROMPT).encode())
            assert status == "200"
            assert json.loads(answer)["usage"]["total_tokens"] == 8
            assert json.loads(s.servers.received[-1][1].body) == PROMPT
            await s.idle()
            await s.clean()


@contextlib.asynccontextmanager
async def grpc_model_server() -> AsyncIterator[int]:
    """A server-streaming method that sends its request back three times, with a status in the trailers."""

    async def echo(request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Model", {"Generate": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_grpc_model_server_with_response_trailers(tmp_path: Path) -> None:
    async with (
        grpc_model_server() as model_port,
        PickerProcess(tmp_path, [Served("127.0.0.1", model_port)]) as picker,
    ):
        listen, admin = free_ports(2)
        gateway = Gateway("standalone", listen, admin, picker.grpc_port, upstream_http2=True)
        async with Envoy(gateway, tmp_path) as envoy, grpc.aio.insecure_channel(f"127.0.0.1:{listen}") as channel:
            generate = channel.unary_stream("/test.Model/Generate")
            for size in (0, 10, 200_000):
                message = b"x" * size
                assert [answer async for answer in generate(message, timeout=20)] == [message] * 3
            stats = await envoy.stats()
            assert stats.get("spurious_msgs_received", 0) == stats.get("streams_failed", 0) == 0


async def test_a_picker_that_dies_takes_only_its_open_answers_along(stage: Any) -> None:
    async with stage("standalone") as s:
        headers = {"x-do-stream": "200", "x-do-gap": "0.02"}
        answer = await s.client.post(s.envoy.url + "/v1/completions", json=PROMPT, headers=headers)
        await answer.content.readline()
        assert s.picker.process is not None
        s.picker.process.send_signal(signal.SIGKILL)
        with contextlib.suppress(aiohttp.ClientError):
            while await answer.content.readline():
                pass
        answer.close()
        await s.picker.process.wait()
        assert (await s.post(PROMPT)).status in (500, 503)
        await s.picker.start()
        for _ in range(100):
            if (await s.post(PROMPT)).status == 200:
                break
            await asyncio.sleep(0.1)
        assert (await s.post(PROMPT)).status == 200


async def test_filters_that_leave_nobody_are_429_with_the_reason(stage: Any) -> None:
    config = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: queue-scorer}
- {type: prefill-filter}
schedulingProfiles: [{name: default, plugins: [{pluginRef: prefill-filter}, {pluginRef: queue-scorer}]}]
"""
    for flavour in ("standalone", "buffered"):
        async with stage(flavour, config=config) as s:
            answer = await s.post(PROMPT)
            assert answer.status == 429
            assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
            assert "prefill-filter" in await answer.text()
            await s.clean()
