"""An ext_proc server on grpc.aio with generated classes and async handlers, as a Python picker is commonly written.

It always answers the same endpoint and echoes every body: no JSON, no scheduling, no metrics, no logs. What it costs is
what the stack costs.

    python -m benchmarks.baseline.grpc_aio_echo [--port 9002] [--tls]
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc

from epp.extproc import ext_proc_pb2 as pb
from epp.transport.certificates import self_signed

PIECE = 62_000
ENDPOINT = b"10.0.0.1:8000"


async def process(requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
    """One ext_proc stream."""
    body: list[bytes] = []
    async for message in requests:
        kind = message.WhichOneof("request")
        if kind == "request_body":
            body.append(message.request_body.body)
            if message.request_body.end_of_stream:
                yield _picked()
                whole = b"".join(body)
                body = []
                for start in range(0, max(len(whole), 1), PIECE):
                    echo = _echo(whole[start : start + PIECE], start + PIECE >= len(whole))
                    yield pb.ProcessingResponse(request_body=echo)
        elif kind == "response_headers":
            yield pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=pb.CommonResponse()))
        elif kind == "response_body":
            chunk = message.response_body
            yield pb.ProcessingResponse(response_body=_echo(chunk.body, chunk.end_of_stream))
        elif kind == "request_headers" and message.request_headers.end_of_stream:
            yield _picked()


def _picked() -> Any:
    response = pb.ProcessingResponse()
    common = response.request_headers.response
    option = common.header_mutation.set_headers.add()
    option.header.key = "x-gateway-destination-endpoint"
    option.header.raw_value = ENDPOINT
    common.clear_route_cache = True
    response.dynamic_metadata.update({"envoy.lb": {"x-gateway-destination-endpoint": ENDPOINT.decode()}})
    return response


def _echo(piece: bytes, end: bool) -> Any:
    streamed = pb.StreamedBodyResponse(body=piece, end_of_stream=end)
    common = pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed))
    return pb.BodyResponse(response=common)


async def serve(port: int, *, tls: bool) -> None:
    """Serve until the process is ended; prints the port first."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=pb.ProcessingRequest.FromString,
        response_serializer=pb.ProcessingResponse.SerializeToString,
    )
    service = "envoy.service.ext_proc.v3.ExternalProcessor"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Process": handler}),))
    address = f"127.0.0.1:{port}"
    bound: int
    if tls:
        certificate, key = self_signed(datetime.now(UTC))
        bound = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    else:
        bound = server.add_insecure_port(address)
    await server.start()
    print(bound, flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.port, tls=options.tls))


if __name__ == "__main__":
    main()
