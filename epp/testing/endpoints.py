"""Endpoints with the numbers a test is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from epp.api.endpoints import BASE_COLUMNS, Endpoint, Endpoints, EndpointTable


def endpoints(
    count: int | None = None,
    *,
    labels: Sequence[Mapping[str, str]] | None = None,
    attributes: Mapping[str, Sequence[Any]] | None = None,
    table: EndpointTable | None = None,
    now: float = 1000.0,
    **columns: Sequence[float],
) -> Endpoints:
    """`pod-0` at 10.0.0.1:8000, `pod-1` at 10.0.0.2:8000, ... with one value each in the columns that are named.

    `endpoints(waiting=[0, 3], kv_usage=[0.1, 0.9])` are two endpoints. Unnamed columns hold what a fresh server has
    (NaN: never measured), except `scraped_at`: as of `now`. `attributes` are objects such as `LoraInfo` per name. All
    are put into `table` (give the one your plugin was built with), which otherwise is a new one: `result.table`.
    """
    lengths = {len(values) for values in (*columns.values(), *(attributes or {}).values())}
    lengths |= {len(labels)} if labels is not None else set()
    lengths |= {count} if count is not None else set()
    if len(lengths) != 1:
        raise ValueError(f"how many endpoints? The arguments speak of {sorted(lengths) or 'none'}")
    size = lengths.pop()
    into = EndpointTable() if table is None else table
    rows = [
        into.add(
            Endpoint(
                name=f"pod-{index}-rank-0",
                address=f"10.{index >> 16}.{index >> 8 & 255}.{index + 1 & 255}",
                port=8000,
                labels=dict(labels[index]) if labels is not None else {},
                pod=f"pod-{index}",
            )
        )
        for index in range(size)
    ]
    into.columns["scraped_at"][rows] = now
    for name, values in columns.items():
        into.add_column(name, BASE_COLUMNS.get(name, np.nan))[rows] = values
    for name, objects in (attributes or {}).items():
        for row, value in zip(rows, objects, strict=True):
            into.attributes[row][name] = value
    return Endpoints(into, np.array(rows, dtype=np.intp), now)
