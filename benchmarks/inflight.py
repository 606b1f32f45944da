"""What a picker says is under way, from its metrics page."""

from __future__ import annotations

from dataclasses import dataclass

from epp.demo.picker import PickerProcess

FLAGS = ("--enable-grpc-stream-metrics",)
"""What a picker needs to be started with to count its streams."""

PREFIX = "llm_d_epp_"


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sums of the magnitudes of all series: ext_proc streams, requests by model, requests and tokens by endpoint.

    Of magnitudes, so that one counter that is too high and one that is too low do not make nothing.
    """

    streams: float
    running: float
    requests: float
    tokens: float

    @property
    def nothing(self) -> bool:
        """Everything has been released."""
        return not any((self.streams, self.running, self.requests, self.tokens))


def read(page: str) -> InFlight:
    """From a metrics page of a picker that has had requests. LookupError when it lacks one of the counters."""
    return InFlight(
        *(
            total(page, PREFIX + name)
            for name in ("extproc_streams_inflight", "request_running", "inflight_requests", "inflight_tokens")
        )
    )


def total(page: str, name: str) -> float:
    """Sum of the magnitudes of a metric's series."""
    found = [
        abs(float(line.rpartition(" ")[2])) for line in page.splitlines() if line.startswith((name + "{", name + " "))
    ]
    if not found:
        raise LookupError(f"the metrics page has no {name}: start the picker with {' '.join(FLAGS)}, and send requests")
    return sum(found)


async def in_flight(process: PickerProcess) -> InFlight:
    """Ask a picker."""
    return read(await process.metrics())
