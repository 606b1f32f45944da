"""The HTTP interface of one simulated server: routes, models, and what goes on between a request and its answer."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from epp_simulator import answers
from epp_simulator.answers import AnswerFormat, Completion
from epp_simulator.completions import ChatFormat, GenerateFormat, TextFormat
from epp_simulator.disaggregation import PREFILLER, Prefiller, PrefillFailedError, accept, transfer_params
from epp_simulator.embeddings import embeddings
from epp_simulator.engine import Engine, Job, QueueFullError
from epp_simulator.failures import injected
from epp_simulator.fake_metrics import FakeMetrics
from epp_simulator.messages_api import MessagesFormat, count
from epp_simulator.metrics import ServerMetrics
from epp_simulator.options import SimOptions
from epp_simulator.prompts import (
    BadPromptError,
    Prompt,
    chat_prompt,
    completion_prompt,
    embedding_prompts,
    generate_prompt,
    messages_prompt,
    responses_prompt,
)
from epp_simulator.publisher import EventPublisher
from epp_simulator.rendering import rendered
from epp_simulator.responses_api import ResponsesFormat

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PromptReader = Callable[[Mapping[str, Any]], Prompt]

# Path -> prefix of request ids, prompt, answer.
_APIS: dict[str, tuple[str, PromptReader, Callable[[Completion], AnswerFormat]]] = {
    "/v1/chat/completions": ("chatcmpl-", chat_prompt, ChatFormat),
    "/v1/completions": ("cmpl-", completion_prompt, TextFormat),
    "/v1/responses": ("resp_", responses_prompt, ResponsesFormat),
    "/v1/messages": ("chatcmpl-", messages_prompt, MessagesFormat),
    "/inference/v1/generate": ("generate-tokens-", generate_prompt, GenerateFormat),
}
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


class RefusedError(Exception):
    """Answered with an error object instead of a completion."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = answers.error(status, message, kind, param)


class SimulatedServer:
    """One HTTP port with the engines behind it: its data-parallel ranks, counted from `first_rank`.

    `seed` makes its random choices its own. `publishers`: of the engines, when KV events are on.
    """

    def __init__(self, options: SimOptions, port: int, seed: int, *, first_rank: int = 0, ranks: int = 1) -> None:
        self.options = options
        self.port = port
        self.engines = [Engine(options, seed * 64 + rank, rank) for rank in range(first_rank, first_rank + ranks)]
        self.publishers: list[EventPublisher] = []
        self.fakes = FakeMetrics(options.fakes, time.monotonic)
        self.metrics = ServerMetrics(self.engines, self.fakes)
        self.requests = 0
        self.loras = {name: number for number, name in enumerate(options.lora_modules, start=1)}
        self._began = time.monotonic()
        self._ids = itertools.count(1)
        self._prefiller: Prefiller | None = None

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(
            client_max_size=self.options.max_request_body_size_mb << 20, middlewares=[self._errors_as_json]
        )
        for path in _APIS:
            app.router.add_post(path, self._complete)
            if path.startswith("/v1/"):
                app.router.add_post(path + "/render", self._render)
        if self.options.pd_sidecar:
            app.cleanup_ctx.append(self._connect)
        app.add_routes(
            [
                web.post("/v1/messages/count_tokens", self._count_tokens),
                web.post("/v1/embeddings", self._embed),
                web.post("/tokenize", self._tokenize),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/health/ready", self._health),
                web.get("/metrics", self._metrics),
                web.get("/version", self._version),
                web.get("/kv_event_sources", self._kv_event_sources),
                web.post("/v1/load_lora_adapter", self._load_lora),
                web.post("/v1/unload_lora_adapter", self._unload_lora),
                web.post("/reset_prefix_cache", self._reset_prefix_cache),
                web.post("/fake_metrics", self._set_fakes),
            ]
        )
        return app

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        failure = injected(self.options, self.engines[0].rng, request.headers.get("x-return-error"))
        if failure is not None:
            return self._json(request, failure[1], failure[0])
        engine = self._engine(request)
        _, _, make = _APIS[request.path]
        body = await self._body(request)
        prefiller = request.headers.get(PREFILLER)
        if self._prefiller is not None and prefiller:
            try:
                identifier = request.headers.get("x-request-id") or self._id()
                body = await self._prefiller.read(prefiller, request.path, body, identifier)
            except PrefillFailedError as failed:  # as the sidecar: the client gets it as it is
                return self._json(request, failed.body, failed.status)
        completion = self._parse(request, body, engine)
        outcome = "abort"
        try:
            async with engine.seat(completion.job):
                answer = await (self._stream if completion.stream else self._whole)(
                    request, engine, completion, make(completion)
                )
                outcome = completion.reason
                return answer
        except QueueFullError:
            outcome = "error"
            raise RefusedError(429, "The waiting queue is full, try again later", "TooManyRequests") from None
        finally:
            metrics = self.metrics.engines[self.engines.index(engine)]
            metrics.finished(completion.job, completion.max_tokens, outcome)

    async def _connect(self, app: web.Application) -> AsyncIterator[None]:
        self._prefiller = Prefiller()
        yield
        await self._prefiller.close()

    async def _whole(
        self, request: web.Request, engine: Engine, completion: Completion, answer: AnswerFormat
    ) -> web.StreamResponse:
        job = completion.job
        await engine.prefill(job)
        while job.generated < len(job.answer):
            await engine.next_token(job)
        body = answer.whole()
        if job.stays_for_decode:
            host = self.options.advertise_host or self.options.host
            name, size = completion.identifier, self.options.block_size
            body["kv_transfer_params"] = transfer_params(job, name, host, self.port, size)
        return self._json(request, body)

    async def _stream(
        self, request: web.Request, engine: Engine, completion: Completion, answer: AnswerFormat
    ) -> web.StreamResponse:
        job = completion.job
        response = web.StreamResponse(headers=self._headers(request))
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)  # as vLLM: headers go out before the first token
        for event in answer.opening():
            await response.write(event)
        await engine.prefill(job)
        for position in range(len(job.answer)):
            if position:
                await engine.next_token(job)
            for event in answer.piece(position):
                await response.write(event)
        for event in answer.closing():
            await response.write(event)
        await response.write_eof()
        return response

    def _parse(self, request: web.Request, body: dict[str, Any], engine: Engine) -> Completion:
        prefix, read, _ = _APIS[request.path]
        model = self._model(body)
        prompt = read(body)
        sampling = body.get("sampling_params") or body
        if not isinstance(sampling, dict):
            raise BadPromptError("body.sampling_params", "Input should be an object")
        max_tokens = next((sampling[name] for name in _LIMITS if sampling.get(name)), None)
        if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
            raise RefusedError(400, f"max_tokens {max_tokens!r}: use 1 or more", "BadRequestError", "max_tokens")
        limit = self.options.max_model_len
        room = limit - len(prompt.tokens)
        if room <= 0 or (max_tokens or 0) > room:
            message = f"This model's maximum context length is {limit} tokens, the request needs more."
            raise RefusedError(400, message, "BadRequestError", "input_tokens")
        length = engine.output_length(max_tokens, ignore_eos=bool(sampling.get("ignore_eos")))
        job = Job(
            prompt=prompt,
            answer=engine.answer(prompt, max(1, min(length, room))),
            lora=model if model in self.loras else "",
            cache_salt=str(body.get("cache_salt") or ""),
            session=body.get("session_id") or request.headers.get("x-session-id"),
        )
        accept(job, body.get("kv_transfer_params"))
        streaming = body.get("stream_options") or {}
        return Completion(
            identifier=prefix + (request.headers.get("x-request-id") or body.get("request_id") or self._id()),
            model=model,
            job=job,
            created=int(time.time()),
            stream=bool(body.get("stream")),
            max_tokens=max_tokens,
            usage_chunk=bool(streaming.get("include_usage")),
            usage_always=bool(streaming.get("continuous_usage_stats")),
            return_token_ids=bool(body.get("return_token_ids")),
        )

    def _engine(self, request: web.Request) -> Engine:
        """The rank that the client asks for, or the one with the least to do."""
        asked = request.headers.get("x-data-parallel-rank")
        if asked is None:
            return min(self.engines, key=lambda engine: len(engine.running) + len(engine.waiting))
        for engine in self.engines:
            if asked == str(engine.rank):
                return engine
        ranks = f"[{self.engines[0].rank}, {self.engines[-1].rank + 1})"
        raise RefusedError(400, f"data_parallel_rank {asked} is out of range {ranks}.", "BadRequestError")

    def _model(self, body: Mapping[str, Any]) -> str:
        model = str(body.get("model") or self.options.names[0])
        if model not in self.options.names and model not in self.loras:
            known = ", ".join((*self.options.names, *self.loras))
            message = f"The model `{model}` does not exist. Valid aliases: {known}."
            raise RefusedError(404, message, "NotFoundError", "model")
        return model

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise RefusedError(400, f"JSON decode error: {error}", "Bad Request") from error
        if not isinstance(body, dict):
            raise RefusedError(400, "the body must be a JSON object", "Bad Request")
        return body

    @web.middleware
    async def _errors_as_json(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError as refused:
            return self._json(request, refused.body, refused.status)
        except BadPromptError as bad:
            return self._json(request, answers.error(400, str(bad), "Bad Request", bad.field_name), 400)

    async def _render(self, request: web.Request) -> web.Response:
        path = request.path.removesuffix("/render")
        prefix, read, _ = _APIS[path]
        body = await self._body(request)
        answer = rendered(prefix + self._id(), self._model(body), body, read(body))
        return self._json(request, [answer] if path == "/v1/completions" else answer)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        tokens = (chat_prompt if "messages" in body else completion_prompt)(body).tokens
        answer = {"count": len(tokens), "max_model_len": self.options.max_model_len, "tokens": tokens}
        return self._json(request, answer | {"token_strs": None})

    async def _count_tokens(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        self._model(body)
        return self._json(request, count(len(messages_prompt(body).tokens)))

    async def _embed(self, request: web.Request) -> web.Response:
        body = await self._body(request)
        model = self._model(body)
        prompts = embedding_prompts(body)
        dimensions = body.get("dimensions", self.options.default_embedding_dimensions)
        if not isinstance(dimensions, int) or not 1 <= dimensions <= 65_536:
            raise RefusedError(400, f"dimensions {dimensions}: use 1 to 65536", "BadRequestError", "dimensions")
        encoding = str(body.get("encoding_format") or "float")
        identifier = "embd-" + (request.headers.get("x-request-id") or self._id())
        return self._json(request, embeddings(identifier, model, int(time.time()), prompts, dimensions, encoding))

    async def _models(self, request: web.Request) -> web.Response:
        created = int(time.time())
        base = self.options.names[0]
        data = [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "vllm",
                "root": self.options.model if name in self.options.names else name,
                "parent": None if name in self.options.names else base,
                "max_model_len": self.options.max_model_len,
            }
            for name in (*self.options.names, *self.loras)
        ]
        return self._json(request, {"object": "list", "data": data})

    async def _health(self, request: web.Request) -> web.Response:
        starting = time.monotonic() - self._began < self.options.startup_duration
        return web.Response(status=503 if starting else 200, headers=self._headers(request))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.page(), content_type="text/plain", charset="utf-8")

    async def _version(self, request: web.Request) -> web.Response:
        return self._json(request, {"version": "0.32.0"})

    async def _kv_event_sources(self, request: web.Request) -> web.Response:
        ranks = zip(self.engines, self.publishers, strict=False)
        return self._json(request, {str(engine.rank): publisher.config.told() for engine, publisher in ranks})

    async def _load_lora(self, request: web.Request) -> web.Response:
        name = str((await self._body(request)).get("lora_name") or "")
        if not name:
            return self._json(request, answers.error(400, "lora_name is required", "BadRequestError"), 400)
        self.loras.setdefault(name, max(self.loras.values(), default=0) + 1)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora(self, request: web.Request) -> web.Response:
        name = str((await self._body(request)).get("lora_name") or "")
        if name not in self.loras:
            message = f"The lora adapter '{name}' cannot be found."
            return self._json(request, answers.error(404, message, "NotFoundError"), 404)
        del self.loras[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        # Told with the events of the next step, as vLLM does.
        done = [engine.cache.clear() for engine in self.engines]
        return self._json(request, {"success": all(done)})

    async def _set_fakes(self, request: web.Request) -> web.Response:
        self.fakes.values = await self._body(request)
        return web.Response()

    def _id(self) -> str:
        return f"{self.port}-{next(self._ids)}"

    def _headers(self, request: web.Request) -> dict[str, str]:
        headers = {"x-inference-port": str(self.port)}
        if self.options.enable_request_id_headers:
            headers["x-request-id"] = request.headers.get("x-request-id") or self._id()
        return headers

    def _json(self, request: web.Request, body: Any, status: int = 200) -> web.Response:
        text = answers.compact(body)
        return web.Response(text=text, status=status, content_type="application/json", headers=self._headers(request))
