"""Messages as the gateways write them."""

from __future__ import annotations

from typing import Any

import pytest

from epp.extproc import ext_proc_pb2 as pb
from epp.extproc.codec import InvalidMessage, decode
from epp.extproc.wire import REQUEST_BODY, REQUEST_HEADERS, RESPONSE_BODY, RESPONSE_HEADERS, RESPONSE_TRAILERS
from tests.extproc_gateway import (
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
)

HINT = "x-gateway-destination-endpoint-subset"


def test_header_names_are_lower_case_and_raw_values_come_first() -> None:
    message = pb.ProcessingRequest()
    headers = message.request_headers.headers.headers
    headers.add(key="Content-Type", value="application/json")
    headers.add(key="X-Both", value="old", raw_value=b"new")
    headers.add(key=":path", value="/v1/completions")
    incoming = decode(message.SerializeToString())
    assert incoming.kind == REQUEST_HEADERS
    assert incoming.headers() == {"content-type": "application/json", "x-both": "new", ":path": "/v1/completions"}


def test_of_repeated_headers_the_last_counts_and_odd_bytes_are_escaped() -> None:
    message = pb.ProcessingRequest()
    for value in (b"1", b"\xff2"):
        message.response_headers.headers.headers.add(key="a", raw_value=value)
    incoming = decode(message.SerializeToString())
    assert incoming.kind == RESPONSE_HEADERS
    assert incoming.headers() == {"a": "\\xff2"}


def test_modes_are_told_or_not() -> None:
    assert decode(request_headers(modes=(pb.BUFFERED, pb.NONE))).modes() == (pb.BUFFERED, pb.NONE)
    assert decode(request_headers(modes=(pb.NONE, pb.NONE))).modes() == (pb.NONE, pb.NONE)
    assert decode(request_headers(modes=None)).modes() is None
    assert decode(request_body(b"x")).modes() is None


@pytest.mark.parametrize(
    ("hint", "subset"),
    [
        (["10.0.0.1:80", "10.0.0.2:80"], ("10.0.0.1:80", "10.0.0.2:80")),
        ("10.0.0.1:80, 10.0.0.2 ,", ("10.0.0.1:80", "10.0.0.2")),
        (["10.0.0.1:80,10.0.0.2", " [::1]:80 "], ("10.0.0.1:80", "10.0.0.2", "[::1]:80")),
        ([], ()),
        ("", ()),
        (["", 7], ()),
        (7, ()),
        (None, ()),
    ],
)
def test_subset_hint(hint: Any, subset: tuple[str, ...]) -> None:
    context = {"envoy.lb.subset_hint": {HINT: hint}}
    assert decode(request_headers(context=context)).subset() == subset
    assert decode(request_body(b"x", context=context)).subset() == subset


def test_no_subset_hint() -> None:
    assert decode(request_headers()).subset() is None
    assert decode(request_headers(context={"envoy.lb.subset_hint": {"other": "x"}})).subset() is None
    assert decode(request_body(b"x", context={"envoy.lb": {"other": HINT}})).subset() is None


def test_served_endpoint() -> None:
    context = {"envoy.lb": {"x-gateway-destination-endpoint-served": " 10.0.0.1:80"}}
    assert decode(response_headers(context=context)).served() == "10.0.0.1:80"
    assert decode(response_body(b"x", context=context)).served() == "10.0.0.1:80"
    assert decode(response_headers()).served() == ""
    assert decode(response_body(b"x")).served() == ""


def test_metadata_that_cannot_be_read_does_not_cost_the_body() -> None:
    junk = b"x-gateway-destination-endpoint-served x-gateway-destination-endpoint-subset"
    message = response_body(b"token") + b"\x42" + bytes((len(junk),)) + junk
    incoming = decode(message)
    assert (incoming.kind, incoming.body) == (RESPONSE_BODY, b"token")
    assert incoming.served() == ""
    assert incoming.subset() is None


def test_fields_in_another_order_and_unknown_ones() -> None:
    message = (
        pb.ProcessingRequest(metadata_context=pb.Metadata()).SerializeToString()
        + request_body(b"x", True)
        + b"\x8a\x02\x01z"  # field 33
    )
    incoming = decode(message)
    assert (incoming.kind, incoming.body, incoming.end_of_stream) == (REQUEST_BODY, b"x", True)
    assert decode(b"\x2a\x05\x0a\x01x\x18\x01").body == b"x"


def test_messages_that_say_nothing_we_know() -> None:
    assert decode(b"").kind == 0
    flow_control = decode(b"\x62\x00")
    assert flow_control.kind == 0
    assert flow_control.name == "an unknown message"
    trailers = decode(response_trailers())
    assert (trailers.kind, trailers.name, trailers.headers()) == (RESPONSE_TRAILERS, "response_trailers", {})
    assert decode(response_body(b"x")).headers() == {}


@pytest.mark.parametrize("message", [b"\xff", b"\x12\x05ab", b"not protobuf at all", b"\x22\x03\x0a\x09x"])
def test_garbage_is_named(message: bytes) -> None:
    with pytest.raises(InvalidMessage, match="not a ProcessingRequest"):
        decode(message)
