"""Budget, cache, bounds and breaker around a backend that does as it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from epp.api import InferenceRequest, Payload, PluginContext
from epp.telemetry.metrics import Registry
from epp_plugins.tokenization import exact
from epp_plugins.tokenization.breaker import FAILURES
from epp_plugins.tokenization.exact import ExactPrompts
from epp_plugins.tokenization.tokenized import Reason, TokenizationError, Tokenized

LABELS = ("plugin_name", "plugin_type")
Make = Callable[..., InferenceRequest]


class Backend:
    """Answers with the body; waits for `gate`, fails with `error`."""

    def __init__(self) -> None:
        self.variant = ""
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.cold = 0
        self.running = False

    def handles(self, kind: str) -> bool:
        return kind == "chat completions"

    def inline(self, kind: str, body: bytes) -> Tokenized | None:
        if body.startswith(b"refuse"):
            raise TokenizationError(Reason.REFUSED, "no")
        return Tokenized((body,)) if body.startswith(b"now") else None

    async def tokenize(self, kind: str, body: bytes, span: Any) -> Tokenized:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Tokenized((body,))

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def trial(self) -> None:
        if self.cold:
            self.cold -= 1
            raise TokenizationError(Reason.FAILED, "not yet")


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
async def prompts(backend: Backend, context: PluginContext) -> AsyncIterator[ExactPrompts]:
    made = ExactPrompts(backend, context, "token-producer", budget=0.05, cache_bytes=1 << 20, pause=0.001)
    await made.start()
    await until(lambda: made.warm)
    yield made
    await made.stop()
    assert not backend.running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- what is waited for signals nobody
            await asyncio.sleep(0.002)


async def asked(prompts: ExactPrompts, request: InferenceRequest) -> Tokenized | None:
    found = prompts.tokenize(request)
    return await found if isinstance(found, Awaitable) else found


def count(registry: Registry, name: str, label: str, value: str) -> float:
    counter = registry.counter(name, "", (*LABELS, label))
    return float(counter.labels("tokens", "token-producer", value).value)


def errors(registry: Registry, reason: Reason) -> float:
    return count(registry, "tokenizer_errors_total", "reason", reason.value)


def degraded(registry: Registry) -> float:
    return float(registry.gauge("tokenizer_degraded", "", LABELS).labels("tokens", "token-producer").value)


async def test_a_repeated_body_is_answered_at_once(
    prompts: ExactPrompts, backend: Backend, registry: Registry, made_request: Make
) -> None:
    one = made_request("chat completions", b"one")
    assert await asked(prompts, one) == Tokenized((b"one",))
    assert prompts.tokenize(one) == Tokenized((b"one",))
    assert prompts.tokenize(made_request("chat completions", b"now")) == Tokenized((b"now",))
    assert backend.calls == 1
    backend.variant = "tomorrow"
    assert isinstance(waiting := prompts.tokenize(one), Awaitable)
    assert await waiting == Tokenized((b"one",))
    assert backend.calls == 2
    assert count(registry, "tokenizer_prompts_total", "source", "cache") == 1
    assert count(registry, "tokenizer_prompts_total", "source", "backend") == 3
    state = prompts.state()
    assert (state["cached"], state["pending"], state["degraded"]) == (3, 0, False)


async def test_over_the_budget_the_answer_still_comes_and_is_kept(
    prompts: ExactPrompts, backend: Backend, registry: Registry, made_request: Make, caplog: pytest.LogCaptureFixture
) -> None:
    backend.gate = asyncio.Event()
    one = made_request("chat completions", b"one")
    with caplog.at_level(logging.WARNING):
        both = await asyncio.gather(asked(prompts, one), asked(prompts, one))
    assert both == [None, None]
    assert backend.calls == 1
    assert errors(registry, Reason.OVER_BUDGET) == 2
    assert [record.message for record in caplog.records] == [
        "tokens: tokenizing takes longer than 0.05 s; token ids are estimated"
    ]
    backend.gate.set()
    await until(lambda: not prompts.state()["pending"])
    assert prompts.tokenize(one) == Tokenized((b"one",))


async def test_who_goes_away_does_not_stop_the_work(
    prompts: ExactPrompts, backend: Backend, made_request: Make
) -> None:
    backend.gate = asyncio.Event()
    one = made_request("chat completions", b"one")
    waiting = asyncio.ensure_future(asked(prompts, one))
    await until(lambda: backend.calls)
    waiting.cancel()
    backend.gate.set()
    await until(lambda: not prompts.state()["pending"])
    assert prompts.tokenize(one) == Tokenized((b"one",))


async def test_a_backend_that_keeps_failing_is_left_alone(
    prompts: ExactPrompts, backend: Backend, registry: Registry, clock: Any, made_request: Make
) -> None:
    backend.error = RuntimeError("boom")
    for n in range(FAILURES):
        assert await asked(prompts, made_request("chat completions", b"%d" % n)) is None
    assert degraded(registry) == 1
    assert errors(registry, Reason.FAILED) == FAILURES
    assert prompts.tokenize(made_request("chat completions", b"more")) is None
    assert backend.calls == FAILURES
    clock.now += 1.5
    backend.error = None
    # The trial: this request does not wait for it.
    assert prompts.tokenize(made_request("chat completions", b"trial")) is None
    await until(lambda: not prompts.state()["pending"])
    assert degraded(registry) == 0
    assert prompts.tokenize(made_request("chat completions", b"trial")) == Tokenized((b"trial",))
    assert await asked(prompts, made_request("chat completions", b"more")) == Tokenized((b"more",))
    assert errors(registry, Reason.UNAVAILABLE) == 2


async def test_a_backend_that_hangs_is_left_alone(
    prompts: ExactPrompts, backend: Backend, registry: Registry, clock: Any, made_request: Make
) -> None:
    backend.gate = asyncio.Event()
    await asyncio.gather(*[asked(prompts, made_request("chat completions", b"%d" % n)) for n in range(FAILURES)])
    assert degraded(registry) == 1
    clock.now += 1.5
    assert prompts.tokenize(made_request("chat completions", b"trial")) is None
    assert prompts.tokenize(made_request("chat completions", b"trial")) is None  # the same one, under way
    await asyncio.sleep(0.06)
    backend.gate.set()
    await until(lambda: not prompts.state()["pending"])
    assert degraded(registry) == 1  # late answers heal nothing


async def test_long_bodies_may_be_slow_and_refusals_break_nothing(
    prompts: ExactPrompts, backend: Backend, registry: Registry, made_request: Make
) -> None:
    backend.gate = asyncio.Event()
    long = b"x" * (exact.SLOW_BELOW + 1)
    await asyncio.gather(*[asked(prompts, made_request("chat completions", long + b"%d" % n)) for n in range(9)])
    backend.gate.set()
    await until(lambda: not prompts.state()["pending"])
    backend.error = TokenizationError(Reason.REFUSED, "roles must alternate")
    for n in range(2 * FAILURES):
        assert await asked(prompts, made_request("chat completions", b"%d" % n)) is None
    assert prompts.tokenize(made_request("chat completions", b"refuse")) is None
    assert errors(registry, Reason.REFUSED) == 2 * FAILURES + 1
    assert degraded(registry) == 0


async def test_what_is_under_way_is_bounded(
    prompts: ExactPrompts, backend: Backend, registry: Registry, made_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.gate = asyncio.Event()
    monkeypatch.setattr(exact, "MAX_PENDING", 3)
    monkeypatch.setattr(exact, "MAX_PENDING_BYTES", 2000)
    waiting = [asyncio.ensure_future(asked(prompts, made_request("chat completions", b"a" * n))) for n in (500, 600)]
    await until(lambda: backend.calls == 2)
    assert prompts.tokenize(made_request("chat completions", b"b" * 1000)) is None  # too many bytes
    waiting.append(asyncio.ensure_future(asked(prompts, made_request("chat completions", b"c"))))
    await until(lambda: backend.calls == 3)
    assert prompts.tokenize(made_request("chat completions", b"d")) is None  # too many
    assert errors(registry, Reason.OVERLOAD) == 2
    backend.gate.set()
    assert None not in await asyncio.gather(*waiting)


async def test_huge_bodies_are_not_kept(prompts: ExactPrompts, backend: Backend, made_request: Make) -> None:
    huge = made_request("chat completions", b"x" * (exact.HASHED + 1))
    assert await asked(prompts, huge) is not None
    assert await asked(prompts, huge) is not None
    assert backend.calls == 2
    assert prompts.state()["cachedBytes"] == 0


async def test_other_kinds_are_estimated(prompts: ExactPrompts, registry: Registry, made_request: Make) -> None:
    assert prompts.tokenize(made_request("embeddings", b"x")) is None
    assert prompts.tokenize(made_request("chat completions", b"")) is None
    assert errors(registry, Reason.UNSUPPORTED) == 2


async def test_warm_up(
    backend: Backend, context: PluginContext, registry: Registry, made_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "WARM_UP_TRIES", 3)
    backend.cold = 10**9
    made = ExactPrompts(backend, context, "token-producer", budget=0.05, cache_bytes=0, pause=0.001)
    await made.start()
    assert not made.settled
    assert made.tokenize(made_request("chat completions", b"x")) is None
    assert errors(registry, Reason.UNAVAILABLE) == 1
    await until(lambda: made.settled)
    assert not made.warm
    assert degraded(registry) == 1
    backend.cold = 0
    await until(lambda: made.warm)
    assert degraded(registry) == 0
    assert await asked(made, made_request("chat completions", b"x")) == Tokenized((b"x",))
    await made.stop()


async def test_stopping_ends_what_is_under_way(
    prompts: ExactPrompts, backend: Backend, registry: Registry, made_request: Make
) -> None:
    backend.gate = asyncio.Event()
    waiting = asyncio.ensure_future(asked(prompts, made_request("chat completions", b"x")))
    await until(lambda: backend.calls)
    await prompts.stop()
    assert await waiting is None
    assert errors(registry, Reason.UNAVAILABLE) + errors(registry, Reason.OVER_BUDGET) == 1


async def test_without_metrics(backend: Backend, context: PluginContext, made_request: Make) -> None:
    bare = PluginContext("t", context.clock, context.rng, context.log, context.table, context.find)
    made = ExactPrompts(backend, bare, "token-producer", budget=0.05, cache_bytes=0)
    await made.start()
    await until(lambda: made.warm)
    assert made.tokenize(made_request("x", b"x", Payload("x"))) is None
    assert await asked(made, made_request("chat completions", b"x")) is not None
    await made.stop()
