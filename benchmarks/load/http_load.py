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
    """Of the requests that began after the warm-up. Times in seconds."""

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


async def ask(session: aiohttp.ClientSession, url: str, data: bytes, seen: Seen) -> None:
    """One request."""
    began = time.perf_counter()
    try:
        headers = {"content-type": "application/json"}
        async with session.post(url + "/v1/chat/completions", data=data, headers=headers) as answer:
            if answer.status != 200:
                seen.errors.append(f"{answer.status}: {(await answer.text())[:200]}")
                return
            last = b""
            async for piece in answer.content.iter_any():
                if not last:
                    seen.first_byte.append(time.perf_counter() - began)
                last = (last + piece)[-32:]
            if not last.rstrip().endswith(b"[DONE]"):
                seen.errors.append(f"the answer ended with {last!r}")
                return
            seen.total.append(time.perf_counter() - began)
    except aiohttp.ClientError as error:
        seen.errors.append(f"{type(error).__name__}: {error}")


async def run(url: str, rate: float, seconds: float, warm_up: float, size: int, tokens: int) -> Seen:
    """Ask for `warm_up + seconds`, then wait for what is under way."""
    rng = random.Random(42)
    loop = asyncio.get_running_loop()
    ignored, seen = Seen(), Seen()
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    began = loop.time()
    arrival, number, measuring = began, 0, False
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as tasks:
        while (now := loop.time()) < began + warm_up + seconds:
            if not measuring and now >= began + warm_up:
                measuring = True
                print("measuring", flush=True)
            if now < arrival:
                await asyncio.sleep(min(arrival - now, 0.05))
                continue
            arrival += rng.expovariate(rate)
            number += 1
            tasks.create_task(ask(session, url, body(size, tokens, number), seen if measuring else ignored))
    seen.errors += ignored.errors
    return seen


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
    seen = uvloop.run(run(options.url, options.rate, options.seconds, options.warm_up, options.body, options.tokens))
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
