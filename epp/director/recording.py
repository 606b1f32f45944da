"""What the director tells the world: counts, durations, and the log line of a failure."""

from __future__ import annotations

from typing import Protocol

from epp.api.endpoints import Endpoint
from epp.api.errors import RequestError
from epp.api.request import InferenceRequest, InferenceResponse


class Recorder(Protocol):
    """Implemented over the metric families; a test passes a list-keeping one."""

    itl_bounds: tuple[float, ...]
    """Upper bounds in seconds of the inter-token latency buckets; a flight counts into its own list of these."""

    def refused(self, request: InferenceRequest | None, error: RequestError) -> None:
        """The client got `error` instead of a model server's answer. None: nothing is known of the request."""

    def unexpected(self, error: BaseException) -> None:
        """A bug: log it with its traceback, at most once a minute per kind."""

    def scheduled(self, request: InferenceRequest, endpoint: Endpoint, seconds: float) -> None:
        """Scheduling succeeded."""

    def scheduling_failed(self, request: InferenceRequest, seconds: float) -> None:
        """Scheduling found no endpoint."""

    def began(self, request: InferenceRequest, now: float) -> None:
        """The request was picked and is on its way to the server."""

    def ended(
        self, request: InferenceRequest, response: InferenceResponse, itl_counts: list[int] | None, now: float
    ) -> None:
        """The answer has ended, however (`response.cause`). Called once per `began`."""

    def processed(self, seconds: float) -> None:
        """Time spent on one response outside its body chunks: headers, hooks, usage, end."""
