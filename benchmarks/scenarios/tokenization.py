"""Tokenizing in the picker: what an 8 000-token prompt costs new, after its system prompt was seen, and repeated.

The tokenizer is a small byte-level BPE trained here on the standard library, of the same make as those of large models;
a larger vocabulary costs a little more per token. Times are of the process's CPU.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import inspect
import json
import logging
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from benchmarks.bench import Bench, row
from benchmarks.figures import Outcome, Table, bound, columns
from epp.api import EndpointTable, InferenceRequest, Payload, PluginContext
from epp_plugins.tokenization.exact import ExactPrompts
from epp_plugins.tokenization.local import LocalBackend
from epp_plugins.tokenization.params import LocalParams

SUMMARY = "tokenizing in the picker: CPU of an 8 000-token prompt, new, with a known system prompt, repeated"
CHAT = "chat completions"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOST_REPEATED_MS = 0.2
MOST_SHARE = 0.1
COLUMNS = columns(
    ("what", "what"), ("tokens", "tokens"), ("best", "best ms", 3), ("middle", "median ms", 3), ("worst", "worst ms", 3)
)


async def run(bench: Bench, outcome: Outcome) -> None:
    """One prompt without the piece cache, with it, and from the result cache."""
    rounds = bench.pick(smoke=3, quick=20, full=60)
    size = bench.pick(smoke=4_000, quick=31_000, full=31_000)
    table = Table("one core, local backend, chat with a long system prompt", COLUMNS, [])
    outcome.tables.append(table)
    system = (inspect.getsource(argparse) + inspect.getsource(ast))[:size]
    command = f"LocalBackend, system prompt of {size} characters"
    bench.say("training a tokenizer")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tokenizer.json"
        await asyncio.to_thread(_train, path, system)
        best = {}
        for what, kept in (("new", 0), ("known system prompt", 64 << 20)):
            bench.say(what)
            backend = LocalBackend(
                LocalParams(tokenizer_path=str(path), chat_template=TEMPLATE, prefix_cache_bytes=kept), time.time
            )
            await backend.start()
            tokens = len((await backend.tokenize(CHAT, _body(system, 0), None)).data[0]) // 4
            spent = [await _milliseconds(backend, _body(system, n)) for n in range(1, rounds + 1)]
            await backend.stop()
            best[what] = min(spent)
            cells = {"best": min(spent), "middle": median(spent), "worst": max(spent)}
            table.rows.append(row(command, what=what, tokens=tokens, **cells))
        bench.say("repeated")
        spent = await _repeated(path, _body(system, 0), rounds)
        cells = {"best": min(spent), "middle": median(spent), "worst": max(spent)}
        table.rows.append(row(command, what="repeated body, no wait", tokens=tokens, **cells))
    share = best["known system prompt"] / best["new"]
    outcome.verdicts.append(bound("tokenization: known system prompt / new", share, "", MOST_SHARE, command))
    outcome.verdicts.append(bound("tokenization: repeated body", min(spent), "ms", MOST_REPEATED_MS, command))


async def _milliseconds(backend: LocalBackend, body: bytes) -> float:
    began = time.process_time()
    await backend.tokenize(CHAT, body, None)
    return (time.process_time() - began) * 1e3


async def _repeated(path: Path, body: bytes, rounds: int) -> list[float]:
    def find(name: str) -> None:
        raise LookupError(name)

    context = PluginContext(
        "tokens", time.monotonic, random.Random(0), logging.getLogger("bench"), EndpointTable(), find
    )
    backend = LocalBackend(LocalParams(tokenizer_path=str(path), chat_template=TEMPLATE), time.time)
    prompts = ExactPrompts(backend, context, "token-producer", budget=60.0, cache_bytes=64 << 20)
    await prompts.start()
    while not prompts.settled:  # noqa: ASYNC110 -- what is waited for signals nobody
        await asyncio.sleep(0.01)
    request = InferenceRequest("r", {}, "/", body, Payload(CHAT), 0.0)
    first = prompts.tokenize(request)
    assert isinstance(first, Awaitable)
    await first
    spent = [_timed(lambda: prompts.tokenize(request)) for _ in range(rounds)]
    await prompts.stop()
    return spent


def _timed(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return (time.process_time() - began) * 1e3


def _body(system: str, number: int) -> bytes:
    question = f"Question number {number}: what does this do, and why?"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return json.dumps({"model": "m", "messages": messages}).encode()


def _train(path: Path, text: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.save(str(path))
