"""Pods as endpoints: which of them take requests, and one endpoint for each port of the pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from epp.api.endpoints import Endpoint, EndpointTable
from epp.kubernetes.reflector import KubernetesObject, Metadata

log = logging.getLogger(__name__)

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotation that leaves out ports of the pool on this pod, and its legacy name: `8000,8002`."""


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class _Address(msgspec.Struct):
    ip: str = ""


class _PodStatus(msgspec.Struct, rename={"pod_ip": "podIP", "pod_ips": "podIPs", "conditions": "conditions"}):
    pod_ip: str = ""
    pod_ips: list[_Address] | None = None
    conditions: list[_Condition] | None = None


class _PodSpec(msgspec.Struct):
    hostname: str = ""


class Pod(KubernetesObject):
    """What is needed of a pod."""

    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)

    @property
    def address(self) -> str:
        """The pod's first address, of whichever family the cluster prefers; "" before it has one."""
        if self.status.pod_ip:
            return self.status.pod_ip
        return next((address.ip for address in self.status.pod_ips or () if address.ip), "")

    @property
    def takes_requests(self) -> bool:
        """Ready, with an address, and not on its way out."""
        return (
            self.metadata.deletion_timestamp is None
            and bool(self.address)
            and any(c.type == "Ready" and c.status == "True" for c in self.status.conditions or ())
        )


def active_ports(metadata: Metadata, ports: Sequence[int]) -> list[tuple[int, int]]:
    """`(rank, port)` of the pool's ports that are active on this pod. The rank is the port's place in the pool.

    An annotation that cannot be read is said in the log and counts as absent: a typo must not take a server away.
    """
    annotations = metadata.annotations or {}
    text = next((annotations[name] for name in ACTIVE_PORTS if name in annotations), None)
    if text is None:
        return list(enumerate(ports))
    try:
        active = {int(part) for part in text.split(",") if part.strip()}
    except ValueError:
        log.warning(
            "pod %s/%s: annotation %s: %r is no list of ports, all ports of the pool are used",
            metadata.namespace, metadata.name, ACTIVE_PORTS[0], text[:100],
        )  # fmt: skip
        return list(enumerate(ports))
    return [(rank, port) for rank, port in enumerate(ports) if port in active]


class PodEndpoints:
    """Keeps the table's rows equal to the pods that take requests. Implements `epp.kubernetes.reflector.Follower`.

    A pod that terminates, or is not ready any more, gets no new requests at once; what is in flight there goes on, for
    nobody tells the gateway to stop it. Addresses are used again: a row belongs to the pod that took it last.
    """

    def __init__(self, table: EndpointTable, ports: Sequence[int]) -> None:
        self._table = table
        self._ports = tuple(ports)
        self._pods: dict[str, Pod] = {}
        self._rows: dict[str, tuple[str, ...]] = {}  # pod -> its `ip:port`s in the table
        self._owner: dict[str, str] = {}  # `ip:port` -> pod

    @property
    def pods(self) -> int:
        """Pods that the selector matches, ready or not."""
        return len(self._pods)

    def set_ports(self, ports: Sequence[int]) -> None:
        """The pool's ports have changed."""
        if tuple(ports) == self._ports:
            return
        self._ports = tuple(ports)
        for pod in list(self._pods.values()):
            self.changed(pod)

    def replaced(self, objects: list[Pod]) -> None:
        """All pods there are. Rows of pods that stay are left alone, with what was measured."""
        there = {_key(pod): pod for pod in objects}
        for key in [key for key in self._pods if key not in there]:
            self._drop(key)
        for key, pod in there.items():
            known = self._pods.get(key)
            if known is None or known.metadata.resource_version != pod.metadata.resource_version:
                self.changed(pod)

    def changed(self, obj: Pod) -> None:
        """A pod is new or has changed."""
        key = _key(obj)
        self._pods[key] = obj
        wanted = self._endpoints(obj)
        addresses = tuple(endpoint.host_port for endpoint in wanted)
        before = self._rows.get(key, ())
        for address in before:
            if address not in addresses:
                self._release(address, key)
        for endpoint in wanted:
            self._owner[endpoint.host_port] = key
            self._table.add(endpoint)
        if addresses:
            self._rows[key] = addresses
        else:
            self._rows.pop(key, None)

    def removed(self, obj: Pod) -> None:
        """A pod is gone, or not matched any more."""
        self._drop(_key(obj))

    def clear(self) -> None:
        """The pool is gone."""
        for key in list(self._pods):
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._pods.pop(key, None)
        for address in self._rows.pop(key, ()):
            self._release(address, key)

    def _release(self, address: str, key: str) -> None:
        if self._owner.get(address) == key:  # else another pod has it by now
            del self._owner[address]
            self._table.remove(address)

    def _endpoints(self, pod: Pod) -> list[Endpoint]:
        if not pod.takes_requests:
            return []
        metadata = pod.metadata
        return [
            Endpoint(
                name=f"{metadata.name}-rank-{rank}",
                address=pod.address,
                port=port,
                namespace=metadata.namespace,
                labels=metadata.labels or {},
                rank=rank,
                pod=metadata.name,
                hostname=pod.spec.hostname,
            )
            for rank, port in active_ports(metadata, self._ports)
        ]


def _key(pod: Pod) -> str:
    return pod.metadata.uid or f"{pod.metadata.namespace}/{pod.metadata.name}"
