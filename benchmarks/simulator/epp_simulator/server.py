"""The HTTP interface of one simulated server."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from epp_simulator import answers
from epp_simulator.engine import Engine, Job, QueueFullError
from epp_simulator.failures import injected
from epp_simulator.fake_metrics import FakeMetrics
from epp_simulator.metrics import ServerMetrics
from epp_simulator.options import SimOptions
from epp_simulator.tokens import chat_text, tokenize


class Refused(Exception):
    """Answered with an error object instead of a completion."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = answers.error(status, message, kind, param)


@dataclass(frozen=True, slots=True)
class Completion:
    """A parsed completion request. `kind` is `chat` or `text`."""

    kind: str
    identifier: str
    model: str
    job: Job
    stream: bool
    include_usage: bool
    max_tokens: int | None


class SimulatedServer:
    """Routes, model names and state of one server. `index` makes its random choices its own."""

    def __init__(self, options: SimOptions, index: int = 0) -> None:
        self.options = options
        self.port = options.port + index
        self.engine = Engine(options, options.seed * 1009 + index)
        self.fakes = FakeMetrics(options.fakes, time.monotonic)
        self.metrics = ServerMetrics(self.engine, self.fakes)
        self.requests = 0
        self._loras = dict.fromkeys(options.lora_modules)
        self._began = time.monotonic()
        self._ids = itertools.count(1)

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=self.options.max_request_body_size_mb << 20)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._text),
                web.post("/v1/chat/completions/render", self._render_chat),
                web.post("/v1/completions/render", self._render_text),
                web.post("/tokenize", self._tokenize),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/health/ready", self._health),
                web.get("/metrics", self._metrics),
                web.get("/version", self._version),
                web.post("/v1/load_lora_adapter", self._load_lora),
                web.post("/v1/unload_lora_adapter", self._unload_lora),
                web.post("/reset_prefix_cache", self._reset_prefix_cache),
                web.post("/fake_metrics", self._set_fakes),
            ]
        )
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "chat")

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, "text")

    async def _complete(self, request: web.Request, kind: str) -> web.StreamResponse:
        self.requests += 1
        failure = injected(self.options, self.engine.rng, request.headers.get("x-return-error"))
        if failure is not None:
            return self._json(request, failure[1], failure[0])
        try:
            completion = self._parse(kind, await self._body(request), request.headers.get("x-request-id"))
        except Refused as refused:
            return self._json(request, refused.body, refused.status)
        outcome = "abort"
        try:
            async with self.engine.seat(completion.job):
                answer = await (self._stream if completion.stream else self._whole)(request, completion)
                outcome = _reason(completion)
                return answer
        except QueueFullError:
            outcome = "error"
            body = answers.error(429, "The waiting queue is full, try again later", "TooManyRequests")
            return self._json(request, body, 429)
        finally:
            self.metrics.finished(completion.job, completion.max_tokens, outcome)

    async def _whole(self, request: web.Request, completion: Completion) -> web.StreamResponse:
        job = completion.job
        words = self.engine.words(job)
        await self.engine.prefill(job)
        while job.generated < job.output_tokens:
            await self.engine.next_token(job)
        text = "".join(words)
        body = answers.whole(completion.kind, completion.identifier, completion.model, text, job, _reason(completion))
        return self._json(request, body)

    async def _stream(self, request: web.Request, completion: Completion) -> web.StreamResponse:
        job, kind = completion.job, completion.kind
        response = web.StreamResponse(headers=self._headers(request))
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)  # as vLLM: headers go out before the first token
        created = int(time.time())

        async def send(choices: list[dict[str, Any]], extra: dict[str, Any] | None = None) -> None:
            event = answers.event(kind, completion.identifier, completion.model, created, choices) | (extra or {})
            await response.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")

        words = self.engine.words(job)
        await self.engine.prefill(job)
        if kind == "chat":
            await send([answers.opening()])
        for position, word in enumerate(words):
            if position:
                await self.engine.next_token(job)
            last = position == len(words) - 1
            await send([answers.piece(kind, word, _reason(completion) if last else None)])
        if completion.include_usage:
            await send([], {"usage": answers.usage(job), "system_fingerprint": answers.FINGERPRINT})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _parse(self, kind: str, body: dict[str, Any], request_id: str | None) -> Completion:
        model = str(body.get("model") or self.options.names[0])
        if model not in self.options.names and model not in self._loras:
            known = ", ".join((*self.options.names, *self._loras))
            raise Refused(404, f"The model `{model}` does not exist. Valid aliases: {known}.", "NotFoundError", "model")
        tokens, text = self._prompt(kind, body)
        max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
        room = self.options.max_model_len - len(tokens)
        if room <= 0 or (max_tokens or 0) > room:
            limit = self.options.max_model_len
            message = f"This model's maximum context length is {limit} tokens, the request needs more."
            raise Refused(400, message, "BadRequestError", "input_tokens")
        length = self.engine.output_length(max_tokens, ignore_eos=bool(body.get("ignore_eos")))
        job = Job(
            tokens=tokens,
            output_tokens=max(1, min(length, room)),
            lora=model if model in self._loras else "",
            cache_salt=str(body.get("cache_salt") or ""),
            prompt_text=text,
        )
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        return Completion(
            kind=kind,
            identifier=f"{prefix}-{request_id or f'{self.port}-{next(self._ids)}'}",
            model=model,
            job=job,
            stream=bool(body.get("stream")),
            include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            max_tokens=max_tokens,
        )

    def _prompt(self, kind: str, body: dict[str, Any]) -> tuple[list[int], str]:
        if kind == "chat":
            messages = body.get("messages")
            if not isinstance(messages, list) or not messages:
                raise Refused(400, "1 validation error: body.messages is required", "Bad Request", "body.messages")
            text = chat_text(messages)
            return tokenize(text), str(messages[-1].get("content") or "")
        prompt = body.get("prompt")
        if not prompt:
            raise Refused(400, "1 validation error: body.prompt is required", "Bad Request", "body.prompt")
        if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
            return list(prompt), ""
        text = prompt if isinstance(prompt, str) else "".join(map(str, prompt))
        return tokenize(text), text

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            raise Refused(400, f"JSON decode error: {error}", "Bad Request") from error
        if not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object", "Bad Request")
        return body

    async def _rendered(self, request: web.Request, kind: str) -> web.Response:
        try:
            body = await self._body(request)
            tokens, _ = self._prompt(kind, body)
        except Refused as refused:
            return self._json(request, refused.body, refused.status)
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        rendered = {
            "request_id": f"{prefix}-{self.port}-{next(self._ids)}",
            "token_ids": tokens,
            "features": None,
            "model": body.get("model") or self.options.names[0],
            "cache_salt": body.get("cache_salt"),
        }
        return self._json(request, rendered if kind == "chat" else [rendered])

    async def _render_chat(self, request: web.Request) -> web.Response:
        return await self._rendered(request, "chat")

    async def _render_text(self, request: web.Request) -> web.Response:
        return await self._rendered(request, "text")

    async def _tokenize(self, request: web.Request) -> web.Response:
        try:
            body = await self._body(request)
            tokens, _ = self._prompt("chat" if "messages" in body else "text", body)
        except Refused as refused:
            return self._json(request, refused.body, refused.status)
        answer = {"count": len(tokens), "max_model_len": self.options.max_model_len, "tokens": tokens}
        return self._json(request, answer | {"token_strs": None})

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
            for name in (*self.options.names, *self._loras)
        ]
        return self._json(request, {"object": "list", "data": data})

    async def _health(self, request: web.Request) -> web.Response:
        starting = time.monotonic() - self._began < self.options.startup_duration
        return web.Response(status=503 if starting else 200, headers=self._headers(request))

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.page(), content_type="text/plain", charset="utf-8")

    async def _version(self, request: web.Request) -> web.Response:
        return self._json(request, {"version": "0.32.0"})

    async def _load_lora(self, request: web.Request) -> web.Response:
        name = str((await self._body(request)).get("lora_name") or "")
        if not name:
            return self._json(request, answers.error(400, "lora_name is required", "BadRequestError"), 400)
        self._loras[name] = None
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora(self, request: web.Request) -> web.Response:
        name = str((await self._body(request)).get("lora_name") or "")
        if name not in self._loras:
            message = f"The lora adapter '{name}' cannot be found."
            return self._json(request, answers.error(404, message, "NotFoundError"), 404)
        del self._loras[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        self.engine.cache.clear()
        return web.Response()

    async def _set_fakes(self, request: web.Request) -> web.Response:
        self.fakes.values = await self._body(request)
        return web.Response()

    def _headers(self, request: web.Request) -> dict[str, str]:
        headers = {"x-inference-port": str(self.port)}
        if self.options.enable_request_id_headers:
            headers["x-request-id"] = request.headers.get("x-request-id") or f"{self.port}-{next(self._ids)}"
        return headers

    def _json(self, request: web.Request, body: Any, status: int = 200) -> web.Response:
        text = json.dumps(body, separators=(",", ":"))
        return web.Response(text=text, status=status, content_type="application/json", headers=self._headers(request))


def _reason(completion: Completion) -> str:
    reached = completion.max_tokens is not None and completion.job.output_tokens >= completion.max_tokens
    return "length" if reached else "stop"
