"""A short conversation with the gateway: some users behind two shared system prompts, several turns each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_ASSISTANTS = {
    "travel": "You are a travel assistant. You know trains, hotels and walks, and you answer in one sentence. ",
    "code": "You are a programming assistant. You read code carefully and you explain one step at a time. ",
}
TURN = "x-demo-turn"
"""Names a turn on its request. Not `x-request-id`: a gateway at the edge makes that one anew."""

_QUESTIONS = (
    "Where should I begin?",
    "And what comes after that?",
    "What would you leave out?",
    "Please sum that up.",
)


@dataclass(slots=True)
class Turn:
    """One question and its answer. `cached` of `prompt` tokens came from the server's cache. `error`: of a status that
    is not 200."""

    user: str
    number: int
    request_id: str
    prompt: int = 0
    cached: int = 0
    status: int = 0
    first_token: float = 0.0
    error: str = ""


@dataclass(slots=True)
class _User:
    name: str
    messages: list[dict[str, str]] = field(default_factory=list)


async def converse(url: str, model: str, *, told: Callable[[Turn], None], pause: float = 0.05) -> list[Turn]:
    """Four users, four turns each, one after the other; `told` hears of each answer. Prompts are about 2 KB."""
    users = [
        _User(f"{topic}-{number}", [{"role": "system", "content": text * 12}])
        for topic, text in _ASSISTANTS.items()
        for number in (1, 2)
    ]
    turns: list[Turn] = []
    async with aiohttp.ClientSession() as session:
        for number, question in enumerate(_QUESTIONS, 1):
            for user in users:
                user.messages.append({"role": "user", "content": question})
                turn = Turn(user.name, number, f"{user.name}-{number}")
                answer = await _ask(session, url, model, user.messages, turn)
                user.messages.append({"role": "assistant", "content": answer})
                turns.append(turn)
                told(turn)
                await asyncio.sleep(pause)
    return turns


async def _ask(session: aiohttp.ClientSession, url: str, model: str, messages: list[dict[str, str]], turn: Turn) -> str:
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": 24,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = asyncio.get_running_loop().time()
    text: list[str] = []
    async with session.post(f"{url}/v1/chat/completions", json=body, headers={TURN: turn.request_id}) as answer:
        turn.status = answer.status
        if answer.status != 200:
            turn.error = (await answer.text(errors="replace"))[:500].strip()
            return ""
        async for line in answer.content:
            event = line.removeprefix(b"data: ").strip()
            if not event.startswith(b"{"):
                continue
            if not turn.first_token:
                turn.first_token = asyncio.get_running_loop().time() - began
            _read(json.loads(event), text, turn)
    return "".join(text)


def _read(event: dict[str, Any], text: list[str], turn: Turn) -> None:
    text += [choice.get("delta", {}).get("content") or "" for choice in event.get("choices", ())]
    usage = event.get("usage")
    if usage:
        turn.prompt = usage["prompt_tokens"]
        turn.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
