"""The few ways a request can be refused. Each carries what the client gets to see.

`code` is the name used in the body text and in the `error_code` metric label; `status` is the HTTP status;
`grpc_status` is what a gRPC client sees (without it, it would read every refusal as UNAVAILABLE).
"""

from __future__ import annotations

from typing import ClassVar

DROPPED_REASON_HEADER = "x-llm-d-request-dropped-reason"


class RequestError(Exception):
    """A request that gets an answer from the picker instead of a model server.

    `reason` is the value of the `x-llm-d-request-dropped-reason` response header; None leaves the header out.
    """

    code: ClassVar[str] = "Internal"
    status: ClassVar[int] = 500
    grpc_status: ClassVar[int] = 13

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason

    @property
    def body(self) -> str:
        """The response body, in the words llm-d-router's clients already match on."""
        return f"inference error: {self.code} - {self.message}"


class BadRequest(RequestError):
    """The body or path cannot be understood."""

    code, status, grpc_status = "BadRequest", 400, 3


class NotFound(RequestError):
    """What the request names does not exist."""

    code, status, grpc_status = "NotFound", 404, 5


class PreconditionFailed(RequestError):
    """The client asked for a condition (`prefer: if-available`) that does not hold."""

    code, status, grpc_status = "PreconditionFailed", 412, 9


class PayloadTooLarge(RequestError):
    """The body exceeds `--max-request-body-bytes`."""

    code, status, grpc_status = "PayloadTooLarge", 413, 8


class ResourceExhausted(RequestError):
    """Capacity exists but is contended: 429."""

    code, status, grpc_status = "ResourceExhausted", 429, 8


class Internal(RequestError):
    """A plugin that must not fail did, or the picker has a bug."""

    code, status, grpc_status = "Internal", 500, 13


class ServiceUnavailable(RequestError):
    """There are no endpoints, or the picker is shutting down: 503."""

    code, status, grpc_status = "ServiceUnavailable", 503, 14


class ConfigError(Exception):
    """A configuration that cannot be used: `path` is where (`plugins[2].parameters.threshold`), `fix` what to do."""

    def __init__(self, message: str, *, path: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.fix = fix

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        fix = f" ({self.fix})" if self.fix else ""
        return f"{where}{self.message}{fix}"
