"""How near each candidate is to the endpoint that an earlier profile chose: one comparison of columns per level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from epp.api import PEER_ENDPOINT, TOPOLOGY, DataKey, Endpoints, EndpointTable, InferenceRequest, Topology
from epp_plugins.extractors.topology import LEVELS
from epp_plugins.extractors.topology_header import decode

NOWHERE = len(LEVELS)
"""Level of a candidate that shares no place with the peer; below it 0 is the same host, 3 the same region."""

UNKNOWN = -1

_ELSEWHERE = -2
"""A place of the peer where no endpoint of this pool is."""


class Proximity:
    """Places of all endpoints as numbers, one array of shape `(4, rows)`; made anew when an endpoint changes.

    `header`: the request header that says where the peer is, when another picker chose it; "" none.
    """

    def __init__(self, producer: str, header: str = "") -> None:
        self.key = DataKey(TOPOLOGY, producer)
        self._header = header.lower()
        self._numbers: list[dict[str, int]] = [{} for _ in LEVELS]
        self._attribute = str(self.key)
        self._table: EndpointTable | None = None
        self._version = -1
        self._places: NDArray[np.int64] = np.zeros((len(LEVELS), 0), dtype=np.int64)

    def levels(self, request: InferenceRequest, endpoints: Endpoints) -> NDArray[np.int64] | None:
        """The tightest level that each candidate shares with the peer, `NOWHERE` for none; None: where the peer is, is
        not known."""
        peer = self._peer(request, endpoints.table)
        if peer is None:
            return None
        candidates = self._of(endpoints.table)[:, endpoints.rows]
        same = (candidates == peer[:, None]) & (candidates != UNKNOWN)
        # The first level that is the same is the tightest one.
        levels: NDArray[np.int64] = np.where(same.any(axis=0), same.argmax(axis=0), NOWHERE)
        return levels

    def known(self, request: InferenceRequest, endpoints: Endpoints, level: int) -> NDArray[np.bool_]:
        """Whether both sides tell their place at this level."""
        peer = self._peer(request, endpoints.table)
        told: NDArray[np.bool_] = self._of(endpoints.table)[level, endpoints.rows] != UNKNOWN
        return told if peer is not None and peer[level] != UNKNOWN else np.zeros(len(endpoints), dtype=np.bool_)

    def _peer(self, request: InferenceRequest, table: EndpointTable) -> NDArray[np.int64] | None:
        peer = request.attributes.get(PEER_ENDPOINT)
        if peer is None:
            places = self._told(request, table)
        else:
            row = table.row_of(peer.host_port)
            places = None if row is None else self._of(table)[:, row]
        return places if places is not None and (places != UNKNOWN).any() else None

    def _told(self, request: InferenceRequest, table: EndpointTable) -> NDArray[np.int64] | None:
        """What the header says."""
        value = request.headers.get(self._header) if self._header else None
        if not value:
            return None
        self._of(table)
        place = decode(value)
        names = [getattr(place, level) for level in LEVELS]
        return np.array(
            [
                numbers.get(name, _ELSEWHERE) if name else UNKNOWN
                for name, numbers in zip(names, self._numbers, strict=True)
            ],
            dtype=np.int64,
        )

    def _of(self, table: EndpointTable) -> NDArray[np.int64]:
        if self._version != table.version or self._table is not table:
            places = np.full((len(LEVELS), len(table.endpoints)), UNKNOWN, dtype=np.int64)
            numbers: list[dict[str, int]] = [{} for _ in LEVELS]
            for row in table.rows.tolist():
                place = table.attributes[row].get(self._attribute)
                if not isinstance(place, Topology):
                    continue
                for index, level in enumerate(LEVELS):
                    value = getattr(place, level)
                    if value:
                        places[index, row] = numbers[index].setdefault(value, len(numbers[index]))
            self._places, self._numbers = places, numbers
            self._table, self._version = table, table.version
        return self._places
