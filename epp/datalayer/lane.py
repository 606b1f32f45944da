"""What the collector knows of the fetches of one source, by table row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from epp.api.endpoints import FloatArray
from epp.api.plugin import DataSource, Extractor
from epp.datalayer.http_get import HttpGet


@dataclass(frozen=True, slots=True)
class SourceBinding:
    """A source and the extractors that read what it fetches, in order."""

    source: DataSource[Any]
    extractors: tuple[Extractor[Any], ...] = ()


class Lane:
    """All fetches of one source. Arrays are indexed by table row; times are the collector's clock's."""

    def __init__(self, binding: SourceBinding) -> None:
        self.binding = binding
        self.fixed = binding.source.interval
        """The source's own interval; None: the collector decides."""
        self.clients: dict[int, HttpGet] = {}
        self.due: FloatArray = np.empty(0)
        """When the next fetch should begin, or the one under way is given up; inf: no such row here."""
        self.started: FloatArray = np.empty(0)
        """When the last fetch began; -inf: never."""
        self.spread: FloatArray = np.empty(0)
        """Factor on the interval, drawn anew for each fetch."""
        self.failures: FloatArray = np.empty(0)
        """In a row."""
        self.took: FloatArray = np.empty(0)
        """Seconds of the last fetch that succeeded."""
        self.measured: FloatArray = np.empty(0)
        """When the round trip was last read; -inf: never."""
        self.aim: FloatArray = np.empty(0)
        """Interval that is aimed at now."""
        self.present = np.empty(0, dtype=np.bool_)
        self.busy = np.empty(0, dtype=np.bool_)

    def reset(self, row: int, capacity: int) -> None:
        """A new endpoint has this row; `capacity` is the table's."""
        more = capacity - self.due.size
        if more > 0:
            for name in ("due", "started", "spread", "failures", "took", "measured", "aim"):
                setattr(self, name, np.concatenate([getattr(self, name), np.full(more, np.inf)]))
            self.present = np.concatenate([self.present, np.zeros(more, dtype=np.bool_)])
            self.busy = np.concatenate([self.busy, np.zeros(more, dtype=np.bool_)])
        self.due[row] = np.inf
        self.started[row] = self.measured[row] = -np.inf
        self.spread[row] = self.aim[row] = 1.0
        self.failures[row] = self.took[row] = 0.0
        self.present[row] = self.busy[row] = False

    def open(self, row: int, client: HttpGet) -> None:
        """From now on this row is fetched, first of all at once."""
        self.clients[row] = client
        self.present[row] = True
        self.due[row] = -np.inf

    def close(self, row: int) -> None:
        """Its endpoint is gone; nothing happens when it was not there."""
        client = self.clients.pop(row, None)
        if client is not None:
            client.close()
            self.present[row] = self.busy[row] = False
            self.due[row] = np.inf
