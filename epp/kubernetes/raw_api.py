"""One call of the API server, as the small users of it need it: JSON in, status and JSON out."""

from __future__ import annotations

from typing import Any, Protocol


class RawApi(Protocol):
    """The connection to the API server. Raises `OSError`, `TimeoutError` or the client library's error when it fails;
    an HTTP status, whatever it says, is an answer."""

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """`path` begins with `/api/` or `/apis/`."""
