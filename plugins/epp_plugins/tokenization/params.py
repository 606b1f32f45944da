"""Parameters of the backends that make exact token ids."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from epp.api import Params
from epp.datalayer.durations import seconds

_Bytes = Annotated[int, Meta(ge=0)]
CACHE_BYTES = 64 << 20
DEFAULT_URL = "http://localhost:8000"


class VLLMParams(Params, frozen=True):
    """`url`, `timeout` and `mmTimeout` as in llm-d-router; `budget` and `cacheBytes` are ours."""

    url: Annotated[str, Meta(description="base URL of the render server, plain http")] = ""
    http: Annotated[str, Meta(description="older name of url")] = ""
    timeout: Annotated[str | float, Meta(description="longest call; the request does not wait for it")] = "5s"
    mm_timeout: Annotated[str | float, Meta(description="longest call when a message has parts, such as images")] = (
        "30s"
    )
    budget: Annotated[str | float, Meta(description="longest that a request waits, then its ids are estimated")] = (
        "100ms"
    )
    cache_bytes: Annotated[_Bytes, Meta(description="memory of tokenized requests")] = CACHE_BYTES

    def __post_init__(self) -> None:
        for name in ("timeout", "mm_timeout", "budget"):
            _positive(name, getattr(self, name))
        if self.url and self.http and self.url != self.http:
            raise ValueError("url and http are the same parameter: keep url")
        if not self.base_url.startswith("http://"):
            raise ValueError(f"url: {self.base_url!r} is no plain HTTP address: write http://host:port")

    @property
    def base_url(self) -> str:
        """Without a slash at the end."""
        return (self.url or self.http or DEFAULT_URL).rstrip("/")


class LocalParams(Params, frozen=True):
    """The model's own files. All names are ours; llm-d-router has no such backend."""

    tokenizer_path: Annotated[
        str, Meta(min_length=1, description="tokenizer.json, or the directory of a model that has one")
    ]
    chat_template: Annotated[
        str, Meta(description="file, or text of the template; empty: chat_template.jinja or tokenizer_config.json")
    ] = ""
    content_format: Annotated[
        Literal["auto", "string", "openai"],
        Meta(description="--chat-template-content-format of the servers; auto: from the template, as they do"),
    ] = "auto"
    threads: Annotated[int, Meta(ge=1, le=64, description="prompts that are tokenized side by side")] = 2
    budget: Annotated[str | float, Meta(description="longest that a request waits, then its ids are estimated")] = (
        "100ms"
    )
    cache_bytes: Annotated[_Bytes, Meta(description="memory of tokenized requests")] = CACHE_BYTES
    prefix_cache_bytes: Annotated[_Bytes, Meta(description="memory of pieces that prompts share")] = CACHE_BYTES

    def __post_init__(self) -> None:
        _positive("budget", self.budget)


def _positive(name: str, value: str | float) -> None:
    if seconds(value) is None:
        raise ValueError(f"{name}: must be above 0")
