"""Many model servers for the price of one process: every address of 127.0.0.0/8 at one port answers a vLLM page.

    python -m benchmarks.endpoints [--port 0]

One socket listens for all of them. It is bound to the loopback device, so nothing outside this machine reaches it.
The page is a captured one of 80 KB; how busy a server looks depends on its address, so that scorers have something to
tell apart. A POST is answered with a stream of 100 tokens, as fast as it is read.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import resource
import socket
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "tests" / "data" / "datalayer" / "vllm_metrics.txt"
VARIANTS = 8
TOKENS = 100  # of an answer, each in a chunk of its own: `headline` has as many
_FRAMING = re.compile(rb"\r\n(?:content-length: *([0-9]+)|transfer-encoding: *chunked)\r\n", re.IGNORECASE)
_BUSY = re.compile(rb"^(vllm:num_requests_(?:waiting|running)\{[^}]*\}) \S+$", re.MULTILINE)


def addresses(count: int) -> list[str]:
    """`count` different loopback addresses. ValueError: more than there are."""
    if not 0 < count <= 250 * 250:
        raise ValueError(f"{count} endpoints: from 1 to {250 * 250}")
    return [f"127.1.{index // 250}.{index % 250 + 1}" for index in range(count)]


def pages(captured: bytes) -> list[bytes]:
    """HTTP answers with `VARIANTS` pages that differ in how many requests run and wait."""
    answers = []
    for variant in range(VARIANTS):
        page = _BUSY.sub(rb"\g<1> %d.0" % variant, captured)
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: %d\r\n\r\n" % len(page)
        answers.append(head + page)
    return answers


def stream(tokens: int) -> bytes:
    """The HTTP answer to a chat completion that streams, with its usage at the end, as vLLM's."""
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":['
    token = head + b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
    usage = b'{"prompt_tokens":1000,"total_tokens":%d,"completion_tokens":%d}' % (1000 + tokens, tokens)
    end = (head + b'],"usage":' + usage + b"}\n\n", b"data: [DONE]\n\n")
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in (*[token] * tokens, *end))
    types = b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked"
    return b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s0\r\n\r\n" % (types, chunks)


class Server(asyncio.Protocol):
    """One connection. The answer is one write: this process shall cost as little as it can."""

    def __init__(self, answers: list[bytes], streamed: bytes) -> None:
        self._answers = answers
        self._streamed = streamed
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        address = str(transport.get_extra_info("sockname")[0])
        self._answer = self._answers[int(address.rpartition(".")[2]) % len(self._answers)]

    def data_received(self, data: bytes) -> None:
        self._received += data
        while end := _end_of_request(self._received):
            self._transport.write(self._streamed if self._received.startswith(b"POST ") else self._answer)
            self._received = self._received[end:]


def _end_of_request(data: bytes) -> int:
    """Length of the first request; 0: it is not there as a whole. A chunked body must not look like its own end."""
    head = data.find(b"\r\n\r\n") + 4
    if head < 4:
        return 0
    framing = _FRAMING.search(data, 0, head)
    if framing is None:
        return head
    if framing[1] is None:
        last = data.find(b"\r\n0\r\n\r\n", head - 2)
        return last + 7 if last >= 0 else 0
    length = head + int(framing[1])
    return length if len(data) >= length else 0


def listen(port: int) -> socket.socket:
    """A socket for all loopback addresses, and only those."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    listener.bind(("0.0.0.0", port))
    return listener


async def serve(port: int) -> None:
    """Serve until the process is ended; prints the port first."""
    answers, streamed = pages(PAGE.read_bytes()), stream(TOKENS)
    listener = listen(port)
    server = await asyncio.get_running_loop().create_server(
        lambda: Server(answers, streamed), sock=listener, backlog=4096
    )
    print(listener.getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(serve(options.port))


if __name__ == "__main__":
    main()
