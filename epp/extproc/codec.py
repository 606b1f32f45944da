"""Bytes of a `ProcessingRequest` -> `Incoming`.

Body messages are read by `wire.body_span`, header messages by `header_wire.header_message` where they have the usual
shape; everything else is decoded by the protobuf library. Metadata is decoded only when somebody asks for it.
"""

from __future__ import annotations

from typing import Final

import msgspec
from google.protobuf.message import DecodeError

from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.header_wire import REQUEST_HEADERS_TAG, RESPONSE_HEADERS_TAG, KnownHeaders, header_message
from epp.extproc.metadata import SERVED, SUBSET, served_endpoint, subset_hint
from epp.extproc.wire import (
    REQUEST_BODY,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    body_span,
)

KIND_NAMES: Final = {
    REQUEST_HEADERS: "request_headers",
    RESPONSE_HEADERS: "response_headers",
    REQUEST_BODY: "request_body",
    RESPONSE_BODY: "response_body",
    REQUEST_TRAILERS: "request_trailers",
    RESPONSE_TRAILERS: "response_trailers",
}
_KINDS: Final = {name: kind for kind, name in KIND_NAMES.items()}
_SUBSET: Final = SUBSET.encode()
_SERVED: Final = SERVED.encode()


class InvalidMessage(Exception):
    """The bytes are no `ProcessingRequest`."""


class Incoming(msgspec.Struct, eq=False, gc=False):
    """One message of the gateway. `kind` is a field number of `ProcessingRequest` (`wire`), 0 for none we know.

    `message`: as the library read it, None when that was not needed; then `rest` is what stands behind the body or the
    headers, and `told_headers` and `told_modes` are a header message's. A struct, because four come with every request
    and making one costs a sixth of a class with `__init__`; nothing in it refers back to it.
    """

    kind: int
    body: bytes
    end_of_stream: bool
    message: pb.ProcessingRequest | None = None
    rest: bytes = b""
    told_headers: dict[str, str] | None = None
    told_modes: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The field's name, for messages to people."""
        return KIND_NAMES.get(self.kind, "an unknown message")

    def headers(self) -> dict[str, str]:
        """Header names in lower case; of repeated headers the last counts. Pseudo-headers wherever they stand.

        `raw_value` first, then `value`: Envoy fills the former, agentgateway and NGINX Gateway Fabric (some of) the
        latter. Bytes that are not UTF-8 come as backslash escapes.
        """
        message = self.message
        if message is None:
            return self.told_headers or {}
        phase = message.request_headers if self.kind == REQUEST_HEADERS else message.response_headers
        return {
            header.key.lower(): header.raw_value.decode("utf-8", "backslashreplace") or header.value
            for header in phase.headers.headers
        }

    def modes(self) -> tuple[int, int] | None:
        """`BodySendMode` of request and response body; None: the gateway does not tell."""
        if self.message is None:
            return self.told_modes
        if not self.message.HasField("protocol_config"):
            return None
        config = self.message.protocol_config
        return int(config.request_body_mode), int(config.response_body_mode)

    def subset(self) -> tuple[str, ...] | None:
        """The gateway's subset hint, None when there is none."""
        if self.message is not None:
            return subset_hint(self.message.metadata_context)
        # Not `in`: of bytes it first tries the needle for a number, and an exception is made and thrown away.
        metadata = self._metadata() if self.rest.find(_SUBSET) >= 0 else None
        return None if metadata is None else subset_hint(metadata)

    def served(self) -> str:
        """The endpoint that answered, "" when this message does not tell."""
        if self.message is not None:
            return served_endpoint(self.message.metadata_context)
        metadata = self._metadata() if self.rest.find(_SERVED) >= 0 else None
        return "" if metadata is None else served_endpoint(metadata)

    def _metadata(self) -> pb.Metadata | None:
        """None when it cannot be read: what the metadata is for has a fallback, the body has none."""
        try:
            return pb.ProcessingRequest.FromString(self.rest).metadata_context
        except DecodeError:
            return None


def decode(message: bytes, known: KnownHeaders | None = None) -> Incoming:
    """`known`: what earlier messages brought; None: nothing. Raises `InvalidMessage`."""
    tag = message[0] if message else 0
    if tag in (REQUEST_HEADERS_TAG, RESPONSE_HEADERS_TAG):
        told = header_message(message, KnownHeaders() if known is None else known)
        if told is not None:
            kind, headers, end_of_stream, modes, rest = told
            return Incoming(kind, b"", end_of_stream, None, rest, headers, modes)
    else:
        span = body_span(message)
        if span is not None:
            kind, start, stop, behind, end_of_stream = span
            return Incoming(kind, message[start:stop], end_of_stream, None, message[behind:])
    try:
        decoded = pb.ProcessingRequest.FromString(message)
    except DecodeError as error:
        raise InvalidMessage(f"not a ProcessingRequest of ext_proc ({len(message)} bytes): {error}") from error
    kind = _KINDS.get(decoded.WhichOneof("request") or "", 0)
    if kind == REQUEST_BODY:
        return _body(kind, decoded.request_body, decoded)
    if kind == RESPONSE_BODY:
        return _body(kind, decoded.response_body, decoded)
    end_of_stream = (kind == REQUEST_HEADERS and decoded.request_headers.end_of_stream) or (
        kind == RESPONSE_HEADERS and decoded.response_headers.end_of_stream
    )
    return Incoming(kind, b"", end_of_stream, decoded)


def _body(kind: int, body: pb.HttpBody, decoded: pb.ProcessingRequest) -> Incoming:
    return Incoming(kind, body.body, body.end_of_stream, decoded)
