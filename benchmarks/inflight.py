"""What a picker says is under way, from its metrics page."""

from __future__ import annotations

from dataclasses import dataclass

from epp.demo.picker import PickerProcess

PREFIX = "llm_d_epp_"


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sums over all series: ext_proc streams, requests by model, requests and tokens by endpoint."""

    streams: float
    running: float
    requests: float
    tokens: float

    @property
    def nothing(self) -> bool:
        """Everything has been released."""
        return not any((self.streams, self.running, self.requests, self.tokens))


def read(page: str) -> InFlight:
    """From a metrics page. LookupError when it has no count of streams: another picker, or a renamed metric."""
    streams = total(page, PREFIX + "extproc_streams_inflight")
    if streams is None:
        raise LookupError(f"the metrics page has no {PREFIX}extproc_streams_inflight")
    return InFlight(
        streams,
        total(page, PREFIX + "request_running") or 0.0,
        total(page, PREFIX + "inflight_requests") or 0.0,
        total(page, PREFIX + "inflight_tokens") or 0.0,
    )


def total(page: str, name: str) -> float | None:
    """Sum over the series of a metric; None when there is none."""
    found = [float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(found) if found else None


async def in_flight(process: PickerProcess) -> InFlight:
    """Ask a picker."""
    return read(await process.metrics())
