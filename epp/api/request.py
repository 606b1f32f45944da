"""A request as plugins see it: who asks, for which model, with which prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from epp.api.keys import DataKey


class TerminationCause(StrEnum):
    """How a request ended; every request ends exactly once."""

    NATURAL = "natural"
    CLIENT_DISCONNECT = "client-disconnect"
    EVICTED = "evicted"
    ERROR = "error"


class Usage(msgspec.Struct):
    """Token counts as the model server reported them. None: not reported."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None

    def merge(self, later: Usage) -> None:
        """Take what `later` reports; what it leaves out or reports as 0 keeps its value.

        A total that `later` does not report is the sum of both parts, which may have come in different events.
        """
        self.prompt_tokens = later.prompt_tokens or self.prompt_tokens
        self.completion_tokens = later.completion_tokens or self.completion_tokens
        if later.total_tokens:
            self.total_tokens = later.total_tokens
        elif self.prompt_tokens is not None and self.completion_tokens is not None:
            self.total_tokens = self.prompt_tokens + self.completion_tokens
        if later.cached_tokens is not None:
            self.cached_tokens = later.cached_tokens


class Prompt:
    """What the model is asked to read, as token ids.

    `data` holds the ids as little-endian uint32, one buffer per independent prompt (a completions request may carry
    several). Estimated ids are the UTF-8 bytes of the text packed four to an id, so `data` is then the text itself,
    padded with zeros to a multiple of 4: no conversion, no copy. `tokens` is the number of ids over all prompts.
    """

    __slots__ = ("data", "estimated", "features", "tokens")

    def __init__(self, data: tuple[bytes, ...], *, estimated: bool, features: tuple[MediaFeature, ...] = ()) -> None:
        self.data = data
        self.estimated = estimated
        self.features = features
        self.tokens = sum(map(len, data)) >> 2

    def release(self) -> None:
        """Let go of the ids, which may be as large as the body; `tokens` stays. Called after the pick."""
        self.data = ()
        self.features = ()


@dataclass(frozen=True, slots=True)
class MediaFeature:
    """An image, video or audio in a prompt. `offset` and `length` are in tokens of the prompt with index `prompt`."""

    modality: str
    hash: str
    offset: int
    length: int
    prompt: int = 0


class TextPart(str):
    """A piece of text that the model reads."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class MediaPart:
    """A reference to an image, video or audio: its URL or its inline data."""

    modality: str
    content: str


class Payload:
    """What a parser understood of a body. Parsers subclass it; the base is the opaque payload of a pass-through.

    `model` None: the body names none. `max_tokens` None: the client set no limit. `rewritable`: the model name can be
    replaced in the body. `skip_response`: the response needs no processing, the stream ends with the pick.
    """

    __slots__ = ("cache_salt", "kind", "max_tokens", "model", "rewritable", "skip_response", "stream")

    def __init__(
        self,
        kind: str = "opaque",
        *,
        model: str | None = None,
        stream: bool = False,
        max_tokens: int | None = None,
        cache_salt: str = "",
        rewritable: bool = False,
        skip_response: bool = False,
    ) -> None:
        self.kind = kind
        self.model = model
        self.stream = stream
        self.max_tokens = max_tokens
        self.cache_salt = cache_salt
        self.rewritable = rewritable
        self.skip_response = skip_response

    def parts(self) -> Iterator[list[TextPart | MediaPart]]:
        """The text and media of each independent prompt, in reading order. Nothing for an opaque payload."""
        return iter(())

    def token_ids(self) -> tuple[list[int], ...] | None:
        """Token ids that the client sent, one list per prompt; None when it sent text."""
        return None

    def media_features(self) -> tuple[MediaFeature, ...]:
        """Media that the client described beside its token ids, ordered by offset."""
        return ()

    def release(self) -> None:
        """Let go of the content, which may be as large as the body; the fields above stay. Called after the pick."""


class InferenceRequest(msgspec.Struct, eq=False):
    """One HTTP request on its way to a model server.

    Headers have lower-case names and one value each (the last one wins). `model` is what the client asked for,
    `target_model` what the server is asked for. `received_at` is in seconds of the injected clock.
    `subset`: the endpoints the gateway allows (`ip` or `ip:port`); None: all; empty: none.
    `attributes` is for plugins: producers put what they declare, keyed by `DataKey`. `span` is the trace span that the
    current step belongs to (`epp.telemetry.tracing.Span`), None when the request is not traced.
    """

    id: str
    headers: Mapping[str, str]
    path: str
    body: bytes
    payload: Payload
    received_at: float
    method: str = "POST"
    model: str = ""
    target_model: str = ""
    objective: str = ""
    priority: int = 0
    fairness_id: str = "default-flow"
    subset: tuple[str, ...] | None = None
    body_size: int = 0
    prompt: Prompt | None = None
    attributes: dict[DataKey, Any] = msgspec.field(default_factory=dict)
    span: Any = None

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt; 0 when nobody tokenised it."""
        return self.prompt.tokens if self.prompt is not None else 0


class InferenceResponse(msgspec.Struct, eq=False):
    """What is known of the answer so far. `status` 0: no response headers seen (light mode, or it never came).

    `set_headers` may be filled by `on_response_headers` hooks; `metadata` (namespace -> name -> value) by
    `on_response_end` hooks, and travels on the last response message. `served` is the `ip:port` that answered as told
    by the gateway, or the picked endpoint when the gateway does not tell.
    """

    status: int = 0
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    streaming: bool = False
    served: str = ""
    usage: Usage = msgspec.field(default_factory=Usage)
    cause: TerminationCause = TerminationCause.NATURAL
    first_chunk_at: float | None = None
    last_chunk_at: float | None = None
    body_size: int = 0
    set_headers: dict[str, str] = msgspec.field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
