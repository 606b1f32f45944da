"""Conversations over a few shared system prompts, with adapters and tenants, always the same ones.

Sessions take turns, so that by the time one goes on others have used the caches. Each turn carries all turns before it,
as chat clients do.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_TEXT = (
    "import return class self value index result error while yield raise except lambda global assert print open read "
    "write close format string number list tuple dictionary module function method object instance iterator"
)
WORDS = _TEXT.split()
SYSTEM_PROMPTS = 8
MODELS = ("tiny", "tiny", "lora-a", "lora-b")
SALTS = ("", "", "", "tenant-1")
ANSWER_TOKENS = 12


@dataclass(slots=True)
class Asked:
    """One request. `cached` None: it failed. Times of `time.monotonic`.

    `id` is the request id that the gateway made (an edge does not believe the client's), as the server repeats it.
    """

    id: str
    session: int
    turn: int
    model: str
    salt: str
    began: float
    ended: float = 0.0
    status: int = 0
    prompt_tokens: int = 0
    cached: int | None = None


@dataclass(slots=True)
class Session:
    """A conversation."""

    number: int
    model: str
    salt: str
    messages: list[dict[str, str]]
    turns: int = 0
    words: random.Random = field(default_factory=random.Random)


def text(words: random.Random, count: int) -> str:
    return " ".join(words.choices(WORDS, k=count))


def sessions(count: int, seed: int = 7) -> list[Session]:
    """Session n uses system prompt n modulo their number; every fourth has an adapter or a tenant of its own."""
    systems = [text(random.Random(seed * 100 + n), 150) for n in range(SYSTEM_PROMPTS)]
    return [
        Session(
            number,
            MODELS[number // 2 % len(MODELS)],
            SALTS[number // 3 % len(SALTS)],
            [{"role": "system", "content": systems[number % SYSTEM_PROMPTS]}],
            words=random.Random(seed * 1000 + number),
        )
        for number in range(count)
    ]


async def converse(
    url: str,
    everyone: list[Session],
    turns: int,
    *,
    concurrency: int = 1,
    pause: float = 0.03,
    after: Callable[[list[Asked]], Any] | None = None,
) -> list[Asked]:
    """`turns` more turns of every session; `after` is awaited behind each request. Failures are in the result.

    `pause` follows each answer: people do not answer within a millisecond, and neither do agents.
    """
    done: list[Asked] = []
    order = random.Random(3)
    queue = [session for session in everyone for _ in range(turns)]
    order.shuffle(queue)
    busy: set[int] = set()
    lock = asyncio.Lock()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120)) as client:

        async def worker() -> None:
            while True:
                async with lock:
                    position = next((n for n, s in enumerate(queue) if s.number not in busy), None)
                    if position is None:
                        if not queue:
                            return
                        session = None
                    else:
                        session = queue.pop(position)
                        busy.add(session.number)
                if session is None:
                    await asyncio.sleep(0.01)
                    continue
                done.append(await _turn(client, url, session))
                await asyncio.sleep(pause)
                busy.discard(session.number)
                if after is not None:
                    await after(done)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return done


async def _turn(client: aiohttp.ClientSession, url: str, session: Session) -> Asked:
    session.messages.append({"role": "user", "content": text(session.words, 30 + session.number % 5 * 10)})
    body: dict[str, Any] = {
        "model": session.model,
        "messages": session.messages,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    if session.salt:
        body["cache_salt"] = session.salt
    asked = Asked("", session.number, session.turns, session.model, session.salt, time.monotonic())
    session.turns += 1
    headers = {"content-type": "application/json"}
    try:
        async with client.post(url + "/v1/chat/completions", data=json.dumps(body), headers=headers) as answer:
            asked.status = answer.status
            said = await answer.json(content_type=None)
            if answer.status == 200:
                asked.id = said["id"].partition("-")[2]
                usage = said["usage"]
                asked.prompt_tokens = usage["prompt_tokens"]
                asked.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                session.messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
    except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
        pass
    if asked.status != 200:
        session.messages.pop()  # the client will ask something else
    asked.ended = time.monotonic()
    return asked
