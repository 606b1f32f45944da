"""A value per endpoint that follows from its labels alone: computed when the pool changes, not per request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

import epp

DTypeT = TypeVar("DTypeT", np.bool_, np.float64)


class LabelColumn(Generic[DTypeT]):
    """`compute(labels)` of every endpoint as an array of `dtype`; reading it costs one numpy selection.

    Computed again whenever the table's `version` says that endpoints or labels changed.
    """

    def __init__(self, compute: Callable[[Mapping[str, str]], bool | float], dtype: type[DTypeT]) -> None:
        self._compute = compute
        self._dtype: DTypeLike = dtype
        self._table: epp.EndpointTable | None = None
        self._version = -1
        self._values: NDArray[DTypeT] = np.zeros(0, dtype=dtype)

    def of(self, endpoints: epp.Endpoints) -> NDArray[DTypeT]:
        """Shape `(len(endpoints),)`, the caller's own copy."""
        table = endpoints.table
        if self._version != table.version or self._table is not table:
            compute = self._compute
            self._values = np.array(
                [0 if endpoint is None else compute(endpoint.labels) for endpoint in table.endpoints],
                dtype=self._dtype,
            )
            self._table, self._version = table, table.version
        values: NDArray[DTypeT] = self._values[endpoints.rows]
        return values
