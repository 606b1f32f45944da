"""A lease on the API server, with the optimistic locking of `resourceVersion`."""

from __future__ import annotations

from typing import Any

from epp.kubernetes.lease import Lease, LeaseConflict, from_object, to_object
from epp.kubernetes.raw_api import RawApi


class LeaseRefused(Exception):
    """The API server does not let us have the lease: most likely a Role is missing."""


class ApiLease:
    """Implements `epp.kubernetes.lease.LeaseStore`."""

    def __init__(self, api: RawApi, namespace: str, name: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._all = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"

    async def get(self) -> Lease | None:
        """The lease, None when there is none."""
        status, document = await self._api.call("GET", f"{self._all}/{self._name}")
        return None if status == 404 else self._read(status, document, "get")

    async def create(self, lease: Lease) -> Lease:
        """As stored."""
        status, document = await self._api.call("POST", self._all, to_object(lease, self._name, self._namespace))
        return self._read(status, document, "create")

    async def update(self, lease: Lease) -> Lease:
        """As stored."""
        document = to_object(lease, self._name, self._namespace)
        status, document = await self._api.call("PUT", f"{self._all}/{self._name}", document)
        return self._read(status, document, "update")

    def _read(self, status: int, document: dict[str, Any], verb: str) -> Lease:
        if status == 409:
            raise LeaseConflict
        if status >= 300:
            raise LeaseRefused(
                f"cannot {verb} lease {self._namespace}/{self._name}: status {status}, "
                f"{document.get('message', 'no reason given')}"
                + (": allow get, create and update on leases in a Role" if status in (401, 403) else "")
            )
        return from_object(document)
