"""The replies that are not body chunks: headers, decisions, refusals, trailers.

Header options leave `append` unset, which every gateway takes for overwrite, and carry their value in `raw_value`
(Google's load balancer and NGINX Gateway Fabric read nothing else).

Unlike llm-d-router, the client's headers are not all set again on the request: the gateway still has them, and a copy
would only cost bytes and collapse repeated headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from epp.api.errors import DROPPED_REASON_HEADER, RequestError
from epp.extproc import ext_proc_pb2 as pb

CONTENT_LENGTH: Final = "content-length"
_NEVER_SET: Final = frozenset({"transfer-encoding", CONTENT_LENGTH})

PLAIN_REQUEST_HEADERS: Final = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()
PLAIN_REQUEST_BODY: Final = pb.ProcessingResponse(request_body=pb.BodyResponse()).SerializeToString()
PLAIN_REQUEST_TRAILERS: Final = pb.ProcessingResponse(request_trailers=pb.TrailersResponse()).SerializeToString()
PLAIN_RESPONSE_HEADERS: Final = pb.ProcessingResponse(response_headers=pb.HeadersResponse()).SerializeToString()
PLAIN_RESPONSE_BODY: Final = pb.ProcessingResponse(response_body=pb.BodyResponse()).SerializeToString()
PLAIN_RESPONSE_TRAILERS: Final = pb.ProcessingResponse(response_trailers=pb.TrailersResponse()).SerializeToString()


_NAME: Final = re.compile(r":?[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BREAKS: Final = re.compile(r"[\r\n\0]")


class NoHeader(ValueError):
    """What a plugin set is no HTTP header; it is left out, because the gateway would refuse the whole reply for it."""


def sendable(headers: Mapping[str, str], report: Callable[[NoHeader], None]) -> dict[str, str]:
    """The headers with lower-case names; those that are none are reported instead."""
    fit: dict[str, str] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            report(NoHeader(f"a plugin set the header {str(name)[:80]!r} to a {type(value).__name__}, expected text"))
        elif _NAME.fullmatch(name) is None or _BREAKS.search(value):
            report(NoHeader(f"a plugin set what is no HTTP header: {name[:80]!r}: {value[:80]!r}"))
        else:
            fit[name.lower()] = value
    return fit


def _set(mutation: pb.HeaderMutation, name: str, value: str) -> None:
    header = mutation.set_headers.add().header
    header.key = name
    header.raw_value = value.encode("utf-8", "replace")


def _set_all(mutation: pb.HeaderMutation, headers: Mapping[str, str]) -> None:
    """Lengths and transfer encodings are the exchange's affair; gateways drop empty values."""
    for name, value in headers.items():
        lower = name.lower()
        if value and lower not in _NEVER_SET:
            _set(mutation, lower, value)


def decision_in_headers(headers: Mapping[str, str], remove: Iterable[str], length: int | None) -> bytes:
    """The reply to the request headers that carries the decision. `length`: of the changed body."""
    response = pb.ProcessingResponse()
    _decision(response.request_headers.response, headers, remove, length)
    return response.SerializeToString()


def decision_in_body(headers: Mapping[str, str], remove: Iterable[str], body: bytes | None) -> bytes:
    """The reply to a buffered body. `body` None leaves it as it is."""
    response = pb.ProcessingResponse()
    common = response.request_body.response
    _decision(common, headers, remove, None if body is None else len(body))
    if body is not None:
        _replace(common.body_mutation, body)
    return response.SerializeToString()


def _decision(common: pb.CommonResponse, headers: Mapping[str, str], remove: Iterable[str], length: int | None) -> None:
    _set_all(common.header_mutation, headers)
    if length is not None:
        _set(common.header_mutation, CONTENT_LENGTH, str(length))
    common.header_mutation.remove_headers.extend(remove)
    common.clear_route_cache = True


def response_headers(headers: Mapping[str, str], remove: Iterable[str]) -> bytes:
    """The reply to the response headers."""
    response = pb.ProcessingResponse()
    mutation = response.response_headers.response.header_mutation
    _set_all(mutation, headers)
    mutation.remove_headers.extend(remove)
    return response.SerializeToString()


def changed_response_body(body: bytes, *, length: int | None, remove: Iterable[str] = ()) -> bytes:
    """The reply that replaces a response body (or chunk) outside of full duplex; `length` corrects the header."""
    response = pb.ProcessingResponse()
    common = response.response_body.response
    if length is not None:
        _set(common.header_mutation, CONTENT_LENGTH, str(length))
    common.header_mutation.remove_headers.extend(remove)
    _replace(common.body_mutation, body)
    return response.SerializeToString()


def _replace(mutation: pb.BodyMutation, body: bytes) -> None:
    if body:
        mutation.body = body
    else:
        mutation.clear_body = True


def immediate(error: RequestError) -> bytes:
    """The answer to a refused request.

    `grpc_status` is set because gRPC clients read every refusal as UNAVAILABLE without it; `details` appears in the
    gateway's access log (`%RESPONSE_CODE_DETAILS%`).
    """
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = error.status
    answer.grpc_status.status = error.grpc_status
    answer.details = "epp_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", error.code).lower()
    answer.body = error.body.encode("utf-8", "replace")
    _set(answer.headers, "content-type", "text/plain")
    if error.reason:
        _set(answer.headers, DROPPED_REASON_HEADER, error.reason)
    return response.SerializeToString()
