"""HTTP clients of a gateway: streamed chat completions at a steady rate, in a process of their own.

    python -m benchmarks.load.http_load --url http://127.0.0.1:8081 --rate 40 --seconds 5

Poisson arrivals with a fixed seed. It prints `measuring` when the warm-up is over and a line of JSON at the end, when
the last answer has ended, so that whoever started it can account other processes in between.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop

MODEL = "m"
WORDS = "the quick brown fox jumps over the lazy dog while engineers measure every microsecond of latency in routing "


@dataclass(slots=True)
class Seen:
    """Times, in seconds, of the requests that began after the warm-up; the errors of all."""

    first_byte: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def body(size: int, tokens: int, number: int) -> bytes:
    """A chat completion of about `size` bytes that asks for exactly `tokens` tokens; every one is different."""
    text = f"{number} " + WORDS * (size // len(WORDS) + 1)
    request: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ""}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request["messages"][0]["content"] = text[: max(8, size - len(json.dumps(request)))]
    return json.dumps(request).encode()


class Failed(Exception):
    """A request without a whole answer; the message says what came."""


async def ask(session: aiohttp.ClientSession, url: str, data: bytes) -> tuple[float, float]:
    """Seconds to the first byte and to the end of the answer. Raises `Failed`."""
    began = time.perf_counter()
    first, last = 0.0, b""
    try:
        headers = {"content-type": "application/json"}
        async with session.post(url + "/v1/chat/completions", data=data, headers=headers) as answer:
            if answer.status != 200:
                raise Failed(f"{answer.status}: {(await answer.text())[:200]}")
            async for piece in answer.content.iter_any():
                first = first or time.perf_counter() - began
                last = (last + piece)[-32:]
    except aiohttp.ClientError as error:
        raise Failed(f"{type(error).__name__}: {error}") from error
    if not last.rstrip().endswith(b"[DONE]"):
        raise Failed(f"the answer ended with {last!r}")
    return first, time.perf_counter() - began


class Clients:
    """Asks for `warm_up + seconds`, then waits for what is under way."""

    def __init__(self, url: str, seconds: float, warm_up: float, size: int, tokens: int) -> None:
        self.seen = Seen()
        self._url, self._size, self._tokens = url, size, tokens
        self._clock = asyncio.get_running_loop().time
        self._warm = self._clock() + warm_up
        self._end = self._warm + seconds
        self._number = 0
        self._measuring = False

    async def at_a_rate(self, session: aiohttp.ClientSession, rate: float) -> None:
        """Poisson arrivals."""
        rng = random.Random(42)
        arrival = self._clock()
        async with asyncio.TaskGroup() as tasks:
            while self._goes_on():
                if (now := self._clock()) < arrival:
                    await asyncio.sleep(min(arrival - now, 0.05))
                    continue
                arrival += rng.expovariate(rate)
                tasks.create_task(self._ask(session))

    def _goes_on(self) -> bool:
        now = self._clock()
        if not self._measuring and now >= self._warm:
            self._measuring = True
            print("measuring", flush=True)
        return now < self._end

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        self._number += 1
        measured = self._measuring
        try:
            first, total = await ask(session, self._url, body(self._size, self._tokens, self._number))
        except Failed as failure:
            self.seen.errors.append(str(failure))
            return
        if measured:
            self.seen.first_byte.append(first)
            self.seen.total.append(total)


async def run(options: argparse.Namespace) -> Seen:
    """As the command line says."""
    clients = Clients(options.url, options.seconds, options.warm_up, options.body, options.tokens)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await clients.at_a_rate(session, options.rate)
    return clients.seen


def percentile(values: list[float], share: float) -> float | None:
    """In milliseconds; None of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3 if values else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=40.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--body", type=int, default=4096, help="bytes of a request")
    parser.add_argument("--tokens", type=int, default=100)
    options = parser.parse_args()
    seen = uvloop.run(run(options))
    result = {
        "requests": len(seen.total),
        "errors": len(seen.errors),
        "first_error": seen.errors[0] if seen.errors else None,
        "ttfb50": percentile(seen.first_byte, 0.5),
        "ttfb99": percentile(seen.first_byte, 0.99),
        "total50": percentile(seen.total, 0.5),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
