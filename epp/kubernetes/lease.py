"""A `coordination.k8s.io/v1` Lease as leader election sees it, and what is needed of whoever stores it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

_MICRO_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


class Lease(msgspec.Struct, frozen=True):
    """`holder` "": nobody. `transitions` counts changes of the holder. `version` "": not stored yet.

    Times are wall-clock times of whoever wrote them: they are shown to people, and compared with nothing.
    """

    holder: str
    duration_seconds: int
    acquired: datetime
    renewed: datetime
    transitions: int = 0
    version: str = ""


class LeaseConflict(Exception):
    """Somebody else wrote the lease in the meantime."""


class LeaseStore(Protocol):
    """One lease on an API server. Anything but `LeaseConflict` that is raised means: not reachable now."""

    async def get(self) -> Lease | None:
        """The lease, None when there is none."""

    async def create(self, lease: Lease) -> Lease:
        """As stored, with its version. `LeaseConflict`: there is one by now."""

    async def update(self, lease: Lease) -> Lease:
        """Replace the one of `lease.version`. `LeaseConflict`: it has another version by now."""


def from_object(document: dict[str, Any]) -> Lease:
    """From the API's JSON. Fields that are missing (a lease made by hand) count as never held."""
    spec = document.get("spec") or {}
    acquired = _time(spec.get("acquireTime"))
    return Lease(
        holder=spec.get("holderIdentity") or "",
        duration_seconds=int(spec.get("leaseDurationSeconds") or 0),
        acquired=acquired,
        renewed=_time(spec.get("renewTime")),
        transitions=int(spec.get("leaseTransitions") or 0),
        version=document["metadata"].get("resourceVersion") or "",
    )


def to_object(lease: Lease, name: str, namespace: str) -> dict[str, Any]:
    """As the API takes it. An empty `resourceVersion` is left out: it would mean "whatever is there"."""
    metadata = {"name": name, "namespace": namespace}
    if lease.version:
        metadata["resourceVersion"] = lease.version
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": lease.holder,
            "leaseDurationSeconds": lease.duration_seconds,
            "acquireTime": lease.acquired.astimezone(UTC).strftime(_MICRO_TIME),
            "renewTime": lease.renewed.astimezone(UTC).strftime(_MICRO_TIME),
            "leaseTransitions": lease.transitions,
        },
    }


def _time(text: str | None) -> datetime:
    if not text:
        return datetime.fromtimestamp(0, UTC)
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
