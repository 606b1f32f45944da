"""A small Kubernetes API server on loopback, for clients that are not to be mocked.

It keeps objects of any kind with growing resource versions, and serves: list (pages, label selectors, `metadata.name`),
watch (from a version, bookmarks, time limits, 410 for what has been compacted, an object that stops matching a selector
counts as deleted), get, create, update with optimistic locking, delete; TokenReview and SubjectAccessReview. What the
cluster does is done by the methods of `ApiServer`; faults are switched by its fields.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

Object = dict[str, Any]
PODS = "/api/v1/namespaces/{}/pods"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
OBJECTIVES = "/apis/llm-d.ai/v1alpha2/namespaces/{}/inferenceobjectives"
REWRITES = "/apis/llm-d.ai/v1alpha2/namespaces/{}/inferencemodelrewrites"
LEGACY_OBJECTIVES = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/{}/inferenceobjectives"


@dataclass
class Change:
    """One entry of the log: what watches are told."""

    version: int
    kind: str
    collection: str
    before: Object | None
    after: Object


@dataclass
class ApiServer:
    """`async with ApiServer().serving() as server:`; the namespace is `ns` unless told otherwise."""

    namespace: str = "ns"
    port: int = 0
    tokens: dict[str, str] | None = None
    """Bearer token -> user; None: nobody has to sign in."""
    readers: set[str] = field(default_factory=set)
    """Users that may get `/metrics`."""
    page: int = 1_000_000
    """The largest page, whatever `limit` asks for."""
    bookmark_seconds: float = 0.5
    status: int = 0
    """Not 0: every request gets this status."""
    delay: float = 0.0
    repeat_events: bool = False
    """Each event is told twice, and after the second one the first one again."""
    silent: bool = False
    """A watch that would tell something hangs from then on, for ever, and its connection stays open."""
    swap_events: bool = False
    """What changed at the same time is told in the wrong order."""
    hidden: set[str] = field(default_factory=set)
    """Collections that do not exist (404), as long as their CRD is missing."""
    forbidden: set[str] = field(default_factory=set)
    granted: set[str] | None = None
    """A Role that names these collections to read, and nothing else; None: everything is allowed."""
    broken: dict[str, int] = field(default_factory=dict)
    """Collections whose requests get a status."""
    refusals: list[str] = field(default_factory=list)
    """What was asked for without the right to it."""
    gone_in_stream: bool = True
    """Too old a version: as an event in the stream, else as HTTP status 410."""
    requests: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)
    compacted: int = 0
    version: int = 100
    watches: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _transports: set[asyncio.BaseTransport] = field(default_factory=set)
    _runner: web.AppRunner | None = None
    _tls: ssl.SSLContext | None = None

    # The server.

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
        self._tls = tls
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        app = web.Application(middlewares=[self._gate], client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Break all connections and refuse new ones."""
        self.drop()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def drop(self) -> None:
        """Break the connections of all watches."""
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def kubeconfig(self, token: str = "", ca_file: str = "") -> str:
        """The text of a kubeconfig that leads here."""
        cluster: Object = {"server": self.url, **({"certificate-authority": ca_file} if ca_file else {})}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": {"token": token} if token else {}}],
            }
        )

    # The cluster.

    def put(self, collection: str, obj: Object) -> Object:
        """Create or replace an object."""
        kept = self.objects.setdefault(collection.format(self.namespace), {})
        name = obj["metadata"]["name"]
        return self._commit(collection.format(self.namespace), obj, kept.get(name))

    def delete(self, collection: str, name: str) -> None:
        """Remove an object at once."""
        path = collection.format(self.namespace)
        before = self.objects[path].pop(name)
        self.version += 1
        after = copy.deepcopy(before)
        after["metadata"]["resourceVersion"] = str(self.version)
        self._tell(Change(self.version, "DELETED", path, before, after))

    def compact(self) -> None:
        """Forget the log: watches from older versions get 410."""
        self.log.clear()
        self.compacted = self.version

    def _commit(self, path: str, obj: Object, before: Object | None) -> Object:
        self.version += 1
        after = copy.deepcopy(obj)
        metadata = after["metadata"]
        metadata.setdefault("namespace", self.namespace)
        metadata.setdefault("uid", before["metadata"]["uid"] if before else f"uid-{self.version}")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata.setdefault("creationTimestamp", before["metadata"]["creationTimestamp"] if before else now)
        metadata["resourceVersion"] = str(self.version)
        self.objects.setdefault(path, {})[metadata["name"]] = after
        self._tell(Change(self.version, "MODIFIED" if before else "ADDED", path, before, after))
        return after

    def _tell(self, change: Change) -> None:
        self.log.append(change)
        news, self._news = self._news, asyncio.Event()
        news.set()

    # HTTP.

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.status:
            return _failure(self.status, "injected")
        if self.tokens is not None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or token not in self.tokens:
                return _failure(401, "Unauthorized")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if not self._may(request):
            self.refusals.append(f"{request.method} {path}")
            return _failure(403, "forbidden")
        if path.count("/") == (2 if path.startswith("/api/") else 3):
            return self._kinds(path)
        if path.endswith(("/tokenreviews", "/subjectaccessreviews")):
            return self._review(await request.json())
        of_object = path.removesuffix("/status")
        status = of_object != path and not of_object.endswith("/" + _plural(path))
        path = of_object if status else path
        collection, name = (path, "") if path.rsplit("/", 1)[1] == _plural(path) else path.rsplit("/", 1)
        if not _here(collection, self.hidden, self.namespace):
            return _failure(404, "the server could not find the requested resource")
        if any(collection == broken.format(self.namespace) for broken in self.broken):
            return _failure(self.broken[collection.replace(f"/{self.namespace}/", "/{}/")], "injected")
        if any(collection == forbidden.format(self.namespace) for forbidden in self.forbidden):
            return _failure(403, "forbidden")
        if status:
            return await self._status(request, collection, name)
        if request.method == "GET" and not name:
            return await (self._watch if request.query.get("watch") else self._list)(request, collection)
        kept = self.objects.setdefault(collection, {})
        if request.method == "POST":
            obj = await request.json()
            if obj["metadata"]["name"] in kept:
                return _failure(409, "already exists")
            return web.json_response(self._commit(collection, obj, None), status=201)
        if name not in kept:
            return _failure(404, f"{name} not found")
        if request.method == "PUT":
            obj = await request.json()
            version = obj["metadata"].get("resourceVersion")
            if version and version != kept[name]["metadata"]["resourceVersion"]:
                return _failure(409, "the object has been modified")
            return web.json_response(self._commit(collection, obj, kept[name]))
        if request.method == "DELETE":
            self.delete(collection, name)
            return web.json_response({"kind": "Status", "status": "Success"})
        return web.json_response(kept[name])

    def _may(self, request: web.Request) -> bool:
        if self.granted is None:
            return True
        collections = [collection.format(self.namespace) for collection in self.granted]
        return request.method == "GET" and any(
            request.path == collection or request.path.startswith(f"{collection}/") for collection in collections
        )

    async def _status(self, request: web.Request, collection: str, name: str) -> web.Response:
        """The status subresource: nothing else of the object changes."""
        kept = self.objects.get(collection, {}).get(name)
        if kept is None:
            return _failure(404, f"{name} not found")
        if request.method == "PUT":
            sent = await request.json()
            if sent["metadata"].get("resourceVersion", "") not in ("", kept["metadata"]["resourceVersion"]):
                return _failure(409, "the object has been modified")
            kept = self._commit(collection, {**kept, "status": sent.get("status", {})}, kept)
        return web.json_response(kept)

    def _kinds(self, version: str) -> web.Response:
        """Kinds of one group and version, as far as there are objects of them."""
        resources = [
            {"name": _plural(path), "kind": next(iter(kept.values()))["kind"], "namespaced": True, "verbs": ["list"]}
            for path, kept in self.objects.items()
            if kept and path.startswith(f"{version}/namespaces/") and _here(path, self.hidden, self.namespace)
        ]
        if not resources:
            return _failure(404, "the server could not find the requested resource")
        status = {"name": f"{resources[0]['name']}/status", "kind": resources[0]["kind"], "namespaced": True}
        return web.json_response({"kind": "APIResourceList", "resources": [status, *resources]})

    async def _list(self, request: web.Request, collection: str) -> web.Response:
        items = [obj for obj in self.objects.get(collection, {}).values() if _matches(obj, request.query)]
        items.sort(key=lambda obj: obj["metadata"]["name"])
        start, version = 0, self.version
        if "continue" in request.query:
            token = json.loads(base64.b64decode(request.query["continue"]))
            start, version = token["start"], token["version"]
            if version < self.compacted:
                return _failure(410, "The provided continue parameter is too old")
        limit = min(int(request.query.get("limit", "0")) or self.page, self.page)
        metadata: Object = {"resourceVersion": str(version)}
        if start + limit < len(items):
            token = {"start": start + limit, "version": version}
            metadata["continue"] = base64.b64encode(json.dumps(token).encode()).decode()
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[start : start + limit]})

    async def _watch(self, request: web.Request, collection: str) -> web.StreamResponse:
        position = int(request.query.get("resourceVersion") or 0)
        if position > self.version:
            return _failure(504, "Timeout: Too large resource version")
        if position < self.compacted and not self.gone_in_stream:
            return _failure(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if position < self.compacted:
            await _send(response, "ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
            return response
        transport = request.transport
        assert transport is not None
        self._transports.add(transport)
        self.watches += 1
        loop = asyncio.get_running_loop()
        deadline = loop.time() + float(request.query.get("timeoutSeconds", "300"))
        try:
            while loop.time() < deadline:
                news = self._news
                changes = [c for c in self.log if c.version > position and c.collection == collection]
                position = max((change.version for change in changes), default=position)
                if changes and self.silent:
                    await asyncio.Event().wait()
                for change in reversed(changes) if self.swap_events else changes:
                    for kind, obj in _seen(change, request.query):
                        for _ in range(2 if self.repeat_events else 1):
                            await _send(response, kind, obj)
                        if self.repeat_events and change.before is not None:
                            await _send(response, "MODIFIED", change.before)  # late, and out of order
                try:
                    await asyncio.wait_for(news.wait(), self.bookmark_seconds)
                except TimeoutError:
                    position = max(position, self.version)
                    if request.query.get("allowWatchBookmarks"):
                        await _send(response, "BOOKMARK", {"metadata": {"resourceVersion": str(position)}})
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.watches -= 1
            self._transports.discard(transport)
        return response

    def _review(self, review: Object) -> web.Response:
        if review["kind"] == "TokenReview":
            user = (self.tokens or {}).get(review["spec"]["token"])
            status: Object = {"authenticated": user is not None, "user": {"username": user or ""}}
        else:
            status = {"allowed": review["spec"]["user"] in self.readers}
        return web.json_response({**review, "status": status}, status=201)


def _here(collection: str, hidden: set[str], namespace: str) -> bool:
    return all(collection != one.format(namespace) for one in hidden)


def _plural(path: str) -> str:
    """The last part of a collection's path: behind the namespace, or behind the version."""
    parts = path.split("/")
    return parts[parts.index("namespaces") + 2] if "namespaces" in parts else parts[-1]


def _matches(obj: Object, query: Any) -> bool:
    labels = obj["metadata"].get("labels") or {}
    selector = [part for part in re.split(r",(?![^(]*\))", query.get("labelSelector", "")) if part]
    fields = [part.partition("=") for part in query.get("fieldSelector", "").split(",") if part]
    return all(_selected(labels, part) for part in selector) and all(
        key == "metadata.name" and obj["metadata"]["name"] == value for key, _, value in fields
    )


def _selected(labels: dict[str, str], requirement: str) -> bool:
    """One requirement of a label selector: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`."""
    among = re.fullmatch(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*", requirement)
    if among:
        values = {value.strip() for value in among[3].split(",")}
        return (labels.get(among[1]) in values) == (among[2] == "in")
    if "!=" in requirement:
        key, _, value = requirement.partition("!=")
        return labels.get(key.strip()) != value.strip()
    if "=" in requirement:
        key, _, value = requirement.partition("=")
        return labels.get(key.strip()) == value.lstrip("=").strip()
    wanted = requirement.strip()
    return wanted[1:] not in labels if wanted.startswith("!") else wanted in labels


def _seen(change: Change, query: Any) -> list[tuple[str, Object]]:
    """What a watch with selectors is told of a change."""
    now = change.kind != "DELETED" and _matches(change.after, query)
    before = change.before is not None and _matches(change.before, query)
    if now:
        return [("MODIFIED" if before else "ADDED", change.after)]
    return [("DELETED", change.after)] if before else []


async def _send(response: web.StreamResponse, kind: str, obj: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": obj}).encode() + b"\n")


def _failure(status: int, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    return web.json_response(body, status=status)


def pod(
    name: str, address: str, *, ready: bool = True, labels: dict[str, str] | None = None, **metadata: Any
) -> Object:
    """A pod as the kubelet reports it."""
    return {
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "vllm"} if labels is None else labels, **metadata},
        "spec": {"containers": [{"name": "vllm", "image": "vllm"}]},
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}] if address else [],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def pool(name: str, *ports: int, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    """An InferencePool; `spec` is added to its own."""
    return {
        "kind": "InferencePool",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"} if labels is None else labels},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
            **spec,
        },
    }
