"""Who may read the metrics, asked over the real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from epp.kubernetes.metrics_auth import MAX_ASKED, MAX_KEPT, MetricsAuth
from epp.telemetry.admin import AdminServer
from epp.telemetry.metrics import Registry


class Api:
    """Knows `good` (may read /metrics) and `weak` (may read nothing)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.status = 201
        self.hold: asyncio.Event | None = None

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        assert method == "POST"
        assert body is not None
        self.calls.append((body["kind"], body["spec"]))
        if self.hold is not None:
            await self.hold.wait()
        if self.status >= 300:
            return self.status, {"message": "forbidden"}
        if body["kind"] == "TokenReview":
            token = body["spec"]["token"]
            user = {"username": f"system:{token}", "groups": ["scrapers"], "uid": "7"}
            return 201, {"status": {"authenticated": token in ("good", "weak"), "user": user}}
        spec = body["spec"]
        allowed = spec["user"] == "system:good" and spec["nonResourceAttributes"]["path"] == "/metrics"
        return 201, {"status": {"allowed": allowed}}


class Port:
    """The metrics port, and a clock."""

    def __init__(self) -> None:
        self.api = Api()
        self.now = 0.0
        self.auth = MetricsAuth(self.api, lambda: self.now)
        self.server = AdminServer(Registry(), lambda: (), authenticate=self.auth, collectors=())
        self.port = 0

    async def get(self, path: str = "/metrics", authorization: str | None = None) -> int:
        headers = {} if authorization is None else {"Authorization": authorization}
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}", headers=headers) as answer,
        ):
            return answer.status


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    made = Port()
    made.port = await made.server.start("127.0.0.1", 0)
    yield made
    await made.server.close()


async def test_verdicts(port: Port) -> None:
    assert await port.get() == 401
    assert await port.get(authorization="Basic Z29vZA==") == 401
    assert await port.get(authorization="Bearer ") == 401
    assert await port.get(authorization="Bearer " + "x" * 17_000) in (400, 401)
    assert port.api.calls == []
    assert await port.get(authorization="Bearer good") == 200
    assert await port.get(authorization="bearer  good ") == 200
    assert await port.get(authorization="Bearer weak") == 403
    assert await port.get(authorization="Bearer nobody") == 401
    assert await port.get("/debug/plugins/state", "Bearer good") == 403
    assert await port.get("/healthz") == 200
    asked = [spec for kind, spec in port.api.calls if kind == "SubjectAccessReview"]
    assert asked[0] == {
        "user": "system:good",
        "groups": ["scrapers"],
        "uid": "7",
        "extra": {},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


async def test_answers_are_kept_for_a_while(port: Port) -> None:
    for _ in range(5):
        assert await port.get(authorization="Bearer good") == 200
    assert len(port.api.calls) == 2
    port.now = 61.0
    assert await port.get(authorization="Bearer good") == 200
    assert len(port.api.calls) == 4
    assert await port.get(authorization="Bearer nobody") == 401
    port.now += 11.0
    assert await port.get(authorization="Bearer nobody") == 401
    assert len(port.api.calls) == 6


async def test_many_scrapers_at_once_are_one_question(port: Port) -> None:
    port.api.hold = asyncio.Event()
    asking = [asyncio.create_task(port.get(authorization="Bearer good")) for _ in range(5)]
    while not port.api.calls:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    port.api.hold.set()
    assert await asyncio.gather(*asking) == [200] * 5
    assert len(port.api.calls) == 2


async def test_without_an_answer_nobody_passes(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    port.now = 100.0
    port.api.status = 403
    assert await port.get(authorization="Bearer good") == 503
    assert await port.get(authorization="Bearer good") == 503
    assert caplog.text.count("a ClusterRole must allow to create tokenreviews") == 1
    port.api.status = 201
    assert await port.get(authorization="Bearer good") == 200


async def test_guesses_do_not_fill_the_memory(port: Port) -> None:
    for number in range(MAX_KEPT + 20):
        request = type("Request", (), {"headers": {"Authorization": f"Bearer guess-{number}"}, "path": "/metrics"})
        assert await port.auth(request()) == 401  # type: ignore[arg-type]
    assert len(port.auth._known) == MAX_KEPT


async def test_guesses_do_not_flood_the_api_server(port: Port) -> None:
    port.api.hold = asyncio.Event()
    asking = [asyncio.create_task(port.get(authorization=f"Bearer guess-{n}")) for n in range(MAX_ASKED)]
    while len(port.api.calls) < MAX_ASKED:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.01)
    assert await port.get(authorization="Bearer one-more") == 503
    port.api.hold.set()
    assert await asyncio.gather(*asking) == [401] * MAX_ASKED
    assert len(port.api.calls) == MAX_ASKED
    assert await port.get(authorization="Bearer good") == 200


async def test_an_api_server_that_hangs_is_given_up(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epp.kubernetes.metrics_auth.TIMEOUT", 0.05)
    port.api.hold = asyncio.Event()
    assert await port.get(authorization="Bearer good") == 503
