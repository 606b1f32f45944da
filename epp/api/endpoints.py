"""Endpoints as columns: one row per `ip:port`, one numpy array per fact.

A scorer over 10 or over 1 000 endpoints is then one vector operation. `EndpointTable` owns the rows; `Endpoints` is a
view of the rows that are candidates for one request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epp.api.keys import DataKey

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]

FEW = 48
"""Up to so many endpoints a loop over `array.tolist()` costs less than numpy's operations, above all when the caches
are cold: every operation of numpy is code of its own. Above it, numpy wins by far."""

# Columns every table has. NaN: never measured. `scraped_at`, `picked_at` (clock) and `rtt` are seconds.
BASE_COLUMNS: dict[str, float] = {
    "waiting": np.nan,
    "running": np.nan,
    "kv_usage": np.nan,
    "block_size": np.nan,
    "num_blocks": np.nan,
    "max_loras": np.nan,
    "scraped_at": -np.inf,
    "rtt": np.nan,
    "picked_at": -np.inf,
    "inflight_requests": 0.0,
    "inflight_tokens": 0.0,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Identity of one model server port. Two endpoints with the same `key` are the same endpoint at different times.

    `address` is an IP literal (IPv6 without brackets) or a host name; `labels` are the pod's, and so is `hostname`
    (its `spec.hostname`, empty for most pods). `host_port` is `ip:port` as the gateway expects it; IPv6 in brackets.
    """

    name: str
    address: str
    port: int
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    rank: int = 0
    pod: str = ""
    hostname: str = ""
    host_port: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        host_port = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        object.__setattr__(self, "host_port", host_port)

    @property
    def key(self) -> str:
        """`namespace/name`, the identity that metrics, session tokens and dumps show."""
        return f"{self.namespace}/{self.name}"


class EndpointTable:
    """All endpoints of a pool.

    Rows are reused; `generation[row]` grows whenever a row gets another endpoint, so that a late decrement or scrape
    result for a gone endpoint can be recognised (`is_current`). Rows are written on the event loop only.
    `columns` arrays are replaced when the table grows: do not keep references across an `await`.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.columns: dict[str, FloatArray] = {}
        self._defaults: dict[str, float] = {}
        self.generation: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self.endpoints: list[Endpoint | None] = [None] * capacity
        self.attributes: list[dict[str, Any]] = [{} for _ in range(capacity)]
        self._free = list(range(capacity - 1, -1, -1))
        self._by_address: dict[str, int] = {}
        self._rows: IntArray | None = None
        self._label_masks: dict[tuple[str, frozenset[str]], BoolArray] = {}
        self.version = 0
        self._removed: list[Callable[[int, Endpoint], None]] = []
        self._added: list[Callable[[int, Endpoint], None]] = []
        self._updated: list[Callable[[int, Endpoint], None]] = []
        self._picked: list[Callable[[int, float], None]] = []
        for name, default in BASE_COLUMNS.items():
            self.add_column(name, default)

    def __len__(self) -> int:
        return len(self._by_address)

    def add_column(self, name: str, default: float = np.nan) -> FloatArray:
        """Make sure the column exists; rows without a value hold `default`."""
        if name not in self.columns:
            self._defaults[name] = default
            self.columns[name] = np.full(len(self.endpoints), default)
        return self.columns[name]

    def add(self, endpoint: Endpoint) -> int:
        """Insert or update by `host_port`; returns the row. Known endpoints keep their row and measurements."""
        address = endpoint.host_port
        row = self._by_address.get(address)
        if row is not None:
            known = self.endpoints[row]
            if known is not None and known.key != endpoint.key:
                self.remove(address)  # another pod got the address: nothing that was measured holds for it
            else:
                if known != endpoint or (known is not None and known.labels != endpoint.labels):
                    self.endpoints[row] = endpoint
                    self._changed()
                    for notify in self._updated:
                        notify(row, endpoint)
                return row
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.endpoints[row] = endpoint
        self.generation[row] += 1
        self.attributes[row] = {}
        for name, column in self.columns.items():
            column[row] = self._defaults[name]
        self._by_address[address] = row
        self._changed()
        for notify in self._added:
            notify(row, endpoint)
        return row

    def remove(self, host_port: str) -> None:
        """Forget an endpoint; unknown ones are ignored."""
        row = self._by_address.pop(host_port, None)
        if row is None:
            return
        gone = self.endpoints[row]
        self.endpoints[row] = None
        self.generation[row] += 1
        self._free.append(row)
        self._changed()
        if gone is not None:
            for notify in self._removed:
                notify(row, gone)

    def on_added(self, notify: Callable[[int, Endpoint], None]) -> None:
        """Call `notify(row, endpoint)` after each endpoint that appears."""
        self._added.append(notify)

    def on_updated(self, notify: Callable[[int, Endpoint], None]) -> None:
        """Call `notify(row, endpoint)` after the labels of a known endpoint changed."""
        self._updated.append(notify)

    def on_removed(self, notify: Callable[[int, Endpoint], None]) -> None:
        """Call `notify(row, endpoint)` after each endpoint that goes away."""
        self._removed.append(notify)

    def on_picked(self, notify: Callable[[int, float], None]) -> None:
        """Call `notify(row, now)` for each pick, before `picked_at` changes. It must cost next to nothing."""
        self._picked.append(notify)

    def picked(self, rows: Sequence[int], now: float) -> None:
        """A request goes to these rows."""
        for row in rows:
            for notify in self._picked:
                notify(row, now)
            self.columns["picked_at"][row] = now

    def row_of(self, host_port: str) -> int | None:
        """The row of an `ip:port`, None when unknown."""
        return self._by_address.get(host_port)

    def is_current(self, row: int, generation: int) -> bool:
        """Whether the row still belongs to the endpoint it had when its generation was read."""
        now: int = self.generation.item(row)
        return now == generation

    @property
    def rows(self) -> IntArray:
        """Rows in use, ascending; cached until the next change."""
        if self._rows is None:
            self._rows = np.array(sorted(self._by_address.values()), dtype=np.intp)
            self._rows.flags.writeable = False  # every request reads these: a plugin must not change them for all
        return self._rows

    def all(self, now: float) -> Endpoints:
        """A view of every endpoint."""
        return Endpoints(self, self.rows, now)

    def label_mask(self, key: str, values: frozenset[str]) -> BoolArray:
        """Over all rows: whether the label has one of the values. Cached until an endpoint changes."""
        mask = self._label_masks.get((key, values))
        if mask is None:
            mask = np.array([e is not None and e.labels.get(key) in values for e in self.endpoints], dtype=np.bool_)
            self._label_masks[(key, values)] = mask
        return mask

    def _changed(self) -> None:
        self._rows = None
        self._label_masks.clear()
        self.version += 1

    def _grow(self) -> None:
        old = len(self.endpoints)
        new = old * 2
        for name, column in self.columns.items():
            self.columns[name] = np.concatenate([column, np.full(new - old, self._defaults[name])])
        self.generation = np.concatenate([self.generation, np.zeros(new - old, dtype=np.int64)])
        self.endpoints.extend([None] * (new - old))
        self.attributes.extend({} for _ in range(new - old))
        self._free = list(range(new - 1, old - 1, -1))


class Endpoints:
    """The candidates of one request. Every array has shape `(len(self),)` and the order of `rows`.

    Columns are copies of this request, which its plugins share: work on a result of yours, not in place on one of them.
    `rows` cannot be written.
    """

    __slots__ = ("_cache", "now", "rows", "table")

    def __init__(
        self,
        table: EndpointTable,
        rows: IntArray,
        now: float,
        cache: dict[str | DataKey, FloatArray] | None = None,
    ) -> None:
        self.table = table
        self.rows = rows
        self.now = now
        self._cache: dict[str | DataKey, FloatArray] = {} if cache is None else cache

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Endpoint]:
        for row in self.rows.tolist():
            endpoint = self.table.endpoints[row]
            if endpoint is not None:
                yield endpoint

    def __getitem__(self, index: int) -> Endpoint:
        endpoint = self.table.endpoints[int(self.rows[index])]
        if endpoint is None:
            raise LookupError(f"the endpoint at {index} has been removed")
        return endpoint

    def position(self, row: int) -> int:
        """Where a row of the table, which is among them, stands among these."""
        if len(self.rows) <= FEW:
            place: int = self.rows.tolist().index(row)
            return place
        return int((self.rows == row).argmax())

    def column(self, name: str | DataKey) -> FloatArray:
        """A column by name; a key that nobody produced for this request raises LookupError."""
        values = self._cache.get(name)
        if values is None:
            if not isinstance(name, str) or name not in self.table.columns:
                raise LookupError(f"no column {name}: declare it in `consumes`, and its producer will run first")
            values = self._cache[name] = self.table.columns[name][self.rows]
        return values

    def has(self, name: str | DataKey) -> bool:
        """Whether `column(name)` would succeed."""
        return name in self._cache or (isinstance(name, str) and name in self.table.columns)

    def set(self, name: str | DataKey, values: FloatArray) -> None:
        """Add a column for this request (producers). Shape `(len(self),)`; views taken later are cut to their rows."""
        if values.shape != (len(self.rows),):
            raise ValueError(f"column {name}: shape {values.shape}, expected ({len(self.rows)},)")
        self._cache[name] = values

    def take(self, keep: BoolArray | IntArray | Sequence[int]) -> Endpoints:
        """The candidates under a mask or at positions, with their columns."""
        chosen = np.asarray(keep)
        return Endpoints(
            self.table, self.rows[chosen], self.now, {name: column[chosen] for name, column in self._cache.items()}
        )

    @property
    def waiting(self) -> FloatArray:
        """Requests queued in the server at the last scrape. NaN: never scraped."""
        return self.column("waiting")

    @property
    def running(self) -> FloatArray:
        """Requests in the server's batch at the last scrape. NaN: never scraped."""
        return self.column("running")

    @property
    def kv_usage(self) -> FloatArray:
        """Share of KV-cache blocks in use, 0 to 1. NaN: never scraped."""
        return self.column("kv_usage")

    @property
    def block_size(self) -> FloatArray:
        """Tokens per KV-cache block. NaN: not told."""
        return self.column("block_size")

    @property
    def num_blocks(self) -> FloatArray:
        """KV-cache blocks of the server. NaN: not told."""
        return self.column("num_blocks")

    @property
    def inflight_requests(self) -> FloatArray:
        """Requests that we sent there and that have not ended. Exact, never stale; needs `inflight-load-producer`."""
        return self.column("inflight_requests")

    @property
    def inflight_tokens(self) -> FloatArray:
        """Prompt tokens that we sent there and that are not yet processed; needs `inflight-load-producer`."""
        return self.column("inflight_tokens")

    @property
    def rtt(self) -> FloatArray:
        """Round-trip time to the server in seconds, smoothed, as seen by the collector. NaN: never measured."""
        return self.column("rtt")

    @property
    def age(self) -> FloatArray:
        """Seconds since the scraped values were read. inf: never."""
        ages: FloatArray = self.now - self.column("scraped_at")
        return ages

    def attribute(self, name: str) -> list[Any]:
        """A per-endpoint object that an extractor stored (LoRA sets, model lists); None where there is none."""
        attributes = self.table.attributes
        return [attributes[row].get(name) for row in self.rows.tolist()]

    def label(self, key: str) -> list[str | None]:
        """The label of each endpoint; None where it is missing."""
        return [endpoint.labels.get(key) for endpoint in self]

    def has_label(self, key: str, values: Collection[str]) -> BoolArray:
        """Mask: whether the label is one of `values`. Costs a lookup, not a loop."""
        mask: BoolArray = self.table.label_mask(key, frozenset(values))[self.rows]
        return mask

    def addresses(self) -> list[str]:
        """`ip:port` of each."""
        return [endpoint.host_port for endpoint in self]
