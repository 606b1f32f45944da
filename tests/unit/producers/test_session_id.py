"""`session-id-producer`: a header or a cookie."""

from __future__ import annotations

import msgspec
import pytest

from epp.api import SESSION_ID, DataKey, InferenceRequest, Payload
from epp.testing import plugin
from epp_plugins.producers.session_id import SessionIdParams, SessionIdProducer, cookie

KEY = DataKey(SESSION_ID, "sessions")


def session(params: dict[str, str], headers: dict[str, str]) -> str | None:
    producer = plugin(SessionIdProducer, params, name="sessions")
    assert producer.produces == (KEY,)
    request = InferenceRequest("r", headers, "/", b"", Payload(), 0.0)
    producer.produce(request, producer.context.table.all(0.0))
    return request.attributes.get(KEY)


def test_from_a_header() -> None:
    assert session({"headerName": "X-Session-ID"}, {"x-session-id": " abc "}) == "abc"
    assert session({"headerName": "x-session-id"}, {"x-session-id": " "}) is None
    assert session({"headerName": "x-session-id"}, {}) is None


def test_from_a_cookie() -> None:
    assert session({"cookieName": "sid"}, {"cookie": "a=1; sid=xyz; b=2"}) == "xyz"
    assert session({"cookieName": "sid"}, {"cookie": "a=1"}) is None
    assert session({"cookieName": "sid"}, {}) is None


@pytest.mark.parametrize("params", [{}, {"headerName": "a", "cookieName": "b"}])
def test_exactly_one_source(params: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError, match="exactly one of headerName and cookieName"):
        msgspec.convert(params, SessionIdParams)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("sid=1", "1"),
        ("sid = 1 ;x=2", "1"),
        ('sid="1;"', '"1'),
        ('sid="quoted"', "quoted"),
        ("sid=a=b", "a=b"),
        ("sid=1; sid=2", "1"),
        ("SID=1", ""),
        ("sid", ""),
        ("xsid=1;;=;", ""),
        ("", ""),
    ],
)
def test_cookies(header: str, value: str) -> None:
    assert cookie(header, "sid") == value
