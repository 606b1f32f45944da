"""The pool from the Kubernetes API: one InferencePool, or a selector, and the pods that belong to it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Protocol

import msgspec

from epp.api.endpoints import EndpointTable
from epp.api.plugin import Clock
from epp.kubernetes.connection import ApiConnection
from epp.kubernetes.pods import Pod, PodEndpoints
from epp.kubernetes.reflector import KubernetesObject, Reflector

log = logging.getLogger(__name__)

POOL_GROUP = "inference.networking.k8s.io"
LEGACY_POOL_GROUP = "inference.networking.x-k8s.io"
_VERSIONS = {POOL_GROUP: "v1", LEGACY_POOL_GROUP: "v1alpha2"}


class _Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str] = {}


class _TargetPort(msgspec.Struct):
    number: int


class _PoolSpec(msgspec.Struct, rename="camel"):
    """Of both versions: v1 has `selector.matchLabels` and `targetPorts`, v1alpha2 `selector` and `targetPortNumber`."""

    selector: msgspec.Raw = msgspec.Raw(b"{}")
    target_ports: list[_TargetPort] = []
    target_port_number: int = 0
    app_protocol: str = ""


class InferencePool(KubernetesObject):
    """What is needed of a pool."""

    spec: _PoolSpec = msgspec.field(default_factory=_PoolSpec)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its pods have."""
        selector = self.spec.selector
        try:
            found = msgspec.json.decode(selector, type=_Selector).match_labels
            return found or msgspec.json.decode(selector, type=dict[str, str])
        except msgspec.ValidationError:
            return {}

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of each pod that are servers."""
        return tuple(port.number for port in self.spec.target_ports) or (
            (self.spec.target_port_number,) if self.spec.target_port_number else ()
        )


def selector_of(labels: dict[str, str]) -> str:
    """Labels as a selector, always written the same way."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


class PoolSource(Protocol):
    """Where endpoints come from."""

    @property
    def protocol(self) -> str:
        """What the pool's servers speak: `http`, `h2c`; "" when nobody says."""

    @property
    def synced(self) -> bool:
        """Whether the endpoints have been known once."""

    @property
    def age(self) -> float:
        """Seconds since the API server was last heard."""

    @property
    def unreadable(self) -> int:
        """How often an object was not what its kind says."""

    async def start(self) -> None:
        """Begin to follow."""

    async def stop(self) -> None:
        """End; the endpoints stay."""


class SelectedPods:
    """`--endpoint-selector`: the pods of a selector with fixed ports. Implements `PoolSource`."""

    def __init__(
        self,
        connection: ApiConnection,
        table: EndpointTable,
        namespace: str,
        selector: str,
        ports: Sequence[int],
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.endpoints = PodEndpoints(table, ports)
        self.protocol = ""
        self._reflector = Reflector(
            connection,
            f"/api/v1/namespaces/{namespace}/pods",
            Pod,
            self.endpoints,
            clock=clock,
            rng=rng,
            label_selector=selector,
        )

    @property
    def synced(self) -> bool:
        """Whether the pods have been listed."""
        return self._reflector.synced

    @property
    def age(self) -> float:
        """Seconds since the API server was last heard."""
        return self._reflector.age

    @property
    def lists(self) -> int:
        """How often everything was asked for."""
        return self._reflector.lists

    @property
    def unreadable(self) -> int:
        """How often an object was not what its kind says."""
        return self._reflector.unreadable

    async def start(self) -> None:
        """Begin to follow."""
        self._reflector.start()

    async def stop(self) -> None:
        """End."""
        await self._reflector.stop()


class PoolWatcher:
    """`--pool-name`: an InferencePool, and the pods that it selects. Implements `PoolSource` and `Follower`.

    Another selector begins another watch of pods; the old rows stay until the new pods are listed. Without the pool
    there are no endpoints: that is what its deletion asks for. An API server that is lost is something else.
    """

    def __init__(
        self,
        connection: ApiConnection,
        table: EndpointTable,
        namespace: str,
        name: str,
        *,
        clock: Clock,
        rng: random.Random,
        group: str = POOL_GROUP,
    ) -> None:
        self.name = name
        self.endpoints = PodEndpoints(table, ())
        self.protocol = ""
        self._connection = connection
        self._namespace = namespace
        self._clock = clock
        self._rng = rng
        self._selector: str | None = None
        self._pods: Reflector[Pod] | None = None
        self._known = False
        self._ending: set[asyncio.Task[None]] = set()
        self._pool = Reflector(
            connection,
            f"/apis/{group}/{_VERSIONS.get(group, 'v1')}/namespaces/{namespace}/inferencepools",
            InferencePool,
            self,
            clock=clock,
            rng=rng,
            field_selector=f"metadata.name={name}",
            single=True,
        )

    @property
    def synced(self) -> bool:
        """Whether the pool is there and its pods have been listed; another selector does not take that back."""
        return self._pods is not None and (self._pods.synced or self._known)

    @property
    def age(self) -> float:
        """Seconds since the API server was last heard, by the watch that heard least."""
        return max(self._pool.age, self._pods.age if self._pods is not None else 0.0)

    @property
    def lists(self) -> int:
        """How often everything was asked for."""
        return self._pool.lists + (self._pods.lists if self._pods is not None else 0)

    @property
    def unreadable(self) -> int:
        """How often an object was not what its kind says; of another selector's pods it begins anew."""
        return self._pool.unreadable + (self._pods.unreadable if self._pods is not None else 0)

    async def start(self) -> None:
        """Begin to follow."""
        self._pool.start()

    async def stop(self) -> None:
        """End."""
        await self._pool.stop()
        if self._pods is not None:
            await self._pods.stop()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def replaced(self, objects: list[InferencePool]) -> None:
        """The pool, or none."""
        mine = [pool for pool in objects if pool.metadata.name == self.name]
        if mine:
            self.changed(mine[0])
        elif self._pods is not None:
            self._gone()
        else:
            log.warning(
                "InferencePool %s/%s is not there yet: no requests can be served until it is",
                self._namespace, self.name,
            )  # fmt: skip

    def changed(self, obj: InferencePool) -> None:
        """The pool is new or has changed."""
        if obj.metadata.name != self.name:
            return
        if not obj.ports or not obj.labels:
            log.warning("InferencePool %s/%s has no selector or no ports: left as it was", self._namespace, self.name)
            return
        self.protocol = obj.spec.app_protocol.removeprefix("kubernetes.io/")
        self.endpoints.set_ports(obj.ports)
        selector = selector_of(obj.labels)
        if selector == self._selector:
            return
        log.info("InferencePool %s/%s: pods with %s, ports %s", self._namespace, self.name, selector, obj.ports)
        self._known = self.synced
        self._end_pods()
        self._selector = selector
        self._pods = Reflector(
            self._connection,
            f"/api/v1/namespaces/{self._namespace}/pods",
            Pod,
            self.endpoints,
            clock=self._clock,
            rng=self._rng,
            label_selector=selector,
        )
        self._pods.start()

    def removed(self, obj: InferencePool) -> None:
        """The pool is gone."""
        if obj.metadata.name == self.name:
            self._gone()

    def _gone(self) -> None:
        log.warning("InferencePool %s/%s is gone: there are no endpoints", self._namespace, self.name)
        self._end_pods()
        self._known = False
        self._selector = None
        self.endpoints.clear()

    def _end_pods(self) -> None:
        pods, self._pods = self._pods, None
        if pods is not None:
            task = asyncio.create_task(pods.stop(), name="end of a watch")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
