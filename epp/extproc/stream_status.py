"""The gRPC status that a stream ended with, under the name that dashboards of Go servers know it by."""

from __future__ import annotations

from enum import Enum
from typing import Final

from epp.extproc.exchange import Exchange

# The numbers of https://grpc.github.io/grpc/core/md_doc_statuscodes.html, the names of Go's `codes.Code.String()`.
_NAMES: Final = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)
_CANCELED: Final = 1
_INTERNAL: Final = 13


def stream_status(exchange: Exchange, reason: Enum, aborted: int | None) -> str:
    """The name; to be asked before `Exchange.close`.

    `reason` is a `CloseReason`, `aborted` the code that the transport ended the call with by itself. A gateway resets
    nearly every stream that it is done with: a reset, or the end of the connection, only counts as `Canceled` while
    there was something left to tell. A stream that the transport reset without a status counts as `Internal`.
    """
    if reason.value == "aborted":
        code = _INTERNAL if aborted is None else aborted
    elif exchange.finished is not None:
        code = exchange.finished[0]
    else:
        code = 0 if exchange.complete else _CANCELED
    return _NAMES[code]
