"""`token-producer`: the prompt as token ids, for prefix caches, context lengths and load in tokens.

What it does: sets `request.prompt`. Token ids that the client sent pass through. Text becomes ids by one of three
backends: `estimate` counts four bytes of UTF-8 to an id and makes no attempt at those of the model; `vllm` asks a vLLM
render server; `local` tokenizes here, with the model's own `tokenizer.json` and chat template. The last two give the
ids that the model servers see, which a precise prefix cache needs.

When to use: it is created by itself, with `estimate`, when a plugin needs the prompt. Configure it to tune how media
are counted, or to get exact ids; see `docs/tokenization.md` for what each backend costs.

Parameters: `estimate` (`image`, `video`; see `media_estimate.py`), the default. `vllm`, or `modelName` alone, chooses
the render server; `modelName` is the name it knows the model by. `local` is ours. `estimate` beside `vllm` or `local`
tunes what takes their place. `backend: vllm` of older configurations is understood; `udsTokenizerConfig` is refused.

Metrics, with an exact backend: `tokenizer_prompts_total{source}`, `tokenizer_errors_total{reason}`,
`tokenizer_degraded`, `tokenizer_cache_bytes`, `tokenizer_pending_requests`, `tokenizer_duration_seconds`.

Failure behaviour: a request without readable text gets no prompt; one with token ids that are not 32-bit numbers is
refused with 400. An exact backend never refuses nor delays a request beyond its budget: over budget, failing,
overloaded, or asked for what it cannot render, its ids are estimated, counted, and logged once a minute. A backend that
keeps failing is left alone for a while. Until it has worked once the plugin is not ready, for two minutes at most.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from epp.api import (
    TOKENIZED_PROMPT,
    DataKey,
    Endpoints,
    InferenceRequest,
    Params,
    PluginContext,
    Producer,
    Prompt,
)
from epp.datalayer.durations import seconds
from epp_plugins.producers.media_estimate import EstimateParams
from epp_plugins.tokenization.backend import Backend
from epp_plugins.tokenization.estimate import PromptPacker
from epp_plugins.tokenization.exact import ExactPrompts
from epp_plugins.tokenization.params import LocalParams, VLLMParams
from epp_plugins.tokenization.tokenized import Tokenized, pack_ids

_GRACE = 0.5
"""Seconds on top of the budget until the director gives up: the budget is kept here, where an estimate follows."""


class TokenProducerParams(Params, frozen=True):
    """At most one of `vllm` and `local`; neither, and no `modelName` alone: `estimate`."""

    model_name: Annotated[str, Meta(description="the model's name on the render server")] = ""
    estimate: EstimateParams | None = None
    vllm: VLLMParams | None = None
    local: LocalParams | None = None
    backend: Annotated[
        Literal["", "vllm", "estimate"], Meta(description="deprecated: the section that is there names it")
    ] = ""
    uds_tokenizer_config: Annotated[dict[str, Any], Meta(description="refused: use vllm or local")] | None = None

    def __post_init__(self) -> None:
        if self.uds_tokenizer_config is not None:
            raise ValueError(
                "udsTokenizerConfig is not supported: replace the tokenizer sidecar by a render server "
                "(`vllm: {url: http://…}`), or by the model's files (`local: {tokenizerPath: …}`)"
            )
        if self.backend == "estimate" and (self.vllm is not None or self.local is not None):
            raise ValueError("backend is estimate, and there is vllm or local: drop backend")
        if self.vllm is not None and self.local is not None:
            raise ValueError("vllm and local exclude each other: keep one")
        if self.vllm is not None and not self.model_name:
            raise ValueError("vllm needs modelName: the name the render server knows the model by")

    @property
    def renderer(self) -> VLLMParams | None:
        """The render server; `modelName` alone chooses the one on this host."""
        if self.backend == "estimate":
            return None
        if self.vllm is None and self.model_name and self.estimate is None and self.local is None:
            return VLLMParams()
        return self.vllm


class TokenProducer(Producer[TokenProducerParams]):
    """Sets `request.prompt` from what the parser understood."""

    type = "token-producer"
    stability = "stable"
    Params = TokenProducerParams

    def __init__(self, params: TokenProducerParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._estimate = params.estimate or EstimateParams()
        self._exact: ExactPrompts | None = None
        if (vllm := params.renderer) is not None:
            from epp_plugins.tokenization.vllm_render import VLLMRenderBackend

            self._use(VLLMRenderBackend(vllm, params.model_name), vllm)
        elif (local := params.local) is not None:
            from epp_plugins.tokenization.local import LocalBackend

            self._use(LocalBackend(local, context.settings.get("wall_clock", time.time)), local)

    def _use(self, backend: Backend, params: VLLMParams | LocalParams) -> None:
        budget = seconds(params.budget) or 0.0
        self.timeout = budget + _GRACE
        self._exact = ExactPrompts(backend, self.context, self.type, budget=budget, cache_bytes=params.cache_bytes)

    @property
    def produces(self) -> Sequence[DataKey]:
        return (DataKey(TOKENIZED_PROMPT, self.name),)

    async def start(self) -> None:
        if self._exact is not None:
            await self._exact.start()

    async def stop(self) -> None:
        if self._exact is not None:
            await self._exact.stop()

    def ready(self) -> bool:
        return self._exact is None or self._exact.settled

    def dump_state(self) -> Any:
        return None if self._exact is None else self._exact.state()

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> Awaitable[None] | None:
        """Nothing for opaque payloads, nor when another producer has set the prompt."""
        if request.prompt is not None:
            return None
        payload = request.payload
        ids = payload.token_ids()
        exact = self._exact
        if ids is not None:
            request.prompt = Prompt(
                tuple([pack_ids(prompt) for prompt in ids]), estimated=False, features=payload.media_features()
            )
            if exact is not None:
                exact.metrics.prompt("request")
            return None
        if exact is not None:
            found = exact.tokenize(request)
            if isinstance(found, Tokenized):
                request.prompt = Prompt(found.data, estimated=False, features=found.features)
                return None
            if found is not None:
                return self._wait(request, found)
        self._pack(request)
        return None

    async def _wait(self, request: InferenceRequest, tokenizing: Awaitable[Tokenized | None]) -> None:
        found = await tokenizing
        if found is not None:
            request.prompt = Prompt(found.data, estimated=False, features=found.features)
        else:
            self._pack(request)

    def _pack(self, request: InferenceRequest) -> None:
        packer = PromptPacker(self._estimate, request.headers)
        data = tuple(map(packer.pack, request.payload.parts()))
        if data:
            request.prompt = Prompt(data, estimated=True, features=tuple(packer.features))
