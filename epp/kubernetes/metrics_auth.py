"""Who may read the metrics port: whoever the API server knows and allows to get that path.

The bearer token is shown to the TokenReview API, then a SubjectAccessReview asks whether its owner may `get` the path
(a `nonResourceURLs` rule, as for Kubernetes' own components). Answers are kept for a short time, keyed by a digest of
the token: a scraper comes every few seconds, and the API server has other things to do.

No token or an unknown one is 401, a known one without the right is 403. An API server that does not answer is 503: it
is not known who asks, and metrics tell names of models and pods.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import Any

from aiohttp import web

from epp.api.plugin import Clock
from epp.kubernetes.raw_api import RawApi

log = logging.getLogger(__name__)

ALLOWED_SECONDS = 60.0
"""How long a yes is believed: a revoked token reads metrics that much longer, as in Kubernetes' own components."""
REFUSED_SECONDS = 10.0
MAX_KEPT = 1024
MAX_ASKED = 32
"""Questions at the same time. More come from somebody who guesses, and the API server has other things to do."""
TIMEOUT = 5.0
_TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_MAX_TOKEN = 16 * 1024


class MetricsAuth:
    """`await auth(request)`: None to let it pass, else the HTTP status to refuse with."""

    def __init__(self, api: RawApi, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._known: OrderedDict[tuple[bytes, str], tuple[float, int | None]] = OrderedDict()
        self._asking: dict[tuple[bytes, str], asyncio.Task[int | None]] = {}
        self._said_at = -60.0

    async def __call__(self, request: web.Request) -> int | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN:
            return 401
        key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest(), request.path
        known = self._known.get(key)
        if known is not None and self._clock() < known[0]:
            return known[1]
        # Many scrapers with one token are one question.
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= MAX_ASKED:
                return 503
            task = self._asking[key] = asyncio.create_task(self._ask(key, token))
        return await asyncio.shield(task)

    async def _ask(self, key: tuple[bytes, str], token: str) -> int | None:
        try:
            async with asyncio.timeout(TIMEOUT):
                verdict = await self._review(token, key[1])
        except Exception as error:
            if self._clock() - self._said_at >= 60.0:
                self._said_at = self._clock()
                log.warning("nobody can read the metrics, the API server does not say who may: %s", error)
            return 503
        else:
            self._known[key] = (self._clock() + (ALLOWED_SECONDS if verdict is None else REFUSED_SECONDS), verdict)
            self._known.move_to_end(key)
            while len(self._known) > MAX_KEPT:
                self._known.popitem(last=False)
            return verdict
        finally:
            del self._asking[key]

    async def _review(self, token: str, path: str) -> int | None:
        status = await self._post(_TOKEN_REVIEWS, "authentication.k8s.io/v1", "TokenReview", {"token": token})
        if not status.get("authenticated"):
            return 401
        user = status.get("user") or {}
        spec = {
            "user": user.get("username", ""),
            "groups": user.get("groups") or [],
            "uid": user.get("uid", ""),
            "extra": user.get("extra") or {},
            "nonResourceAttributes": {"path": path, "verb": "get"},
        }
        status = await self._post(_ACCESS_REVIEWS, "authorization.k8s.io/v1", "SubjectAccessReview", spec)
        return None if status.get("allowed") and not status.get("denied") else 403

    async def _post(self, path: str, version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        """The `status` of a review."""
        code, document = await self._api.call("POST", path, {"apiVersion": version, "kind": kind, "spec": spec})
        if code >= 300:
            raise PermissionError(
                f"{kind}: status {code}, {document.get('message', 'no reason given')}"
                + (f": a ClusterRole must allow to create {kind.lower()}s" if code in (401, 403) else "")
            )
        status: dict[str, Any] = document.get("status") or {}
        return status
