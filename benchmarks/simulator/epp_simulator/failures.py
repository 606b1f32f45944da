"""Failures on purpose: a share of requests answered as a troubled server would."""

from __future__ import annotations

import random
from typing import Any

from epp_simulator.answers import error
from epp_simulator.options import FAILURES, SimOptions

_ANSWERS: dict[str, tuple[int, str, str]] = {
    "rate_limit": (429, "Rate limit reached for requests", "RateLimitError"),
    "invalid_api_key": (401, "Incorrect API key provided", "AuthenticationError"),
    "context_length": (400, "This model's maximum context length has been exceeded", "BadRequestError"),
    "server_error": (503, "The server is overloaded or not ready yet", "ServiceUnavailableError"),
    "invalid_request": (400, "Invalid request", "BadRequestError"),
    "model_not_found": (404, "The model does not exist", "NotFoundError"),
}


def injected(options: SimOptions, rng: random.Random, asked: str | None) -> tuple[int, dict[str, Any]] | None:
    """Status and body of a failure, None for a request that may go on. `asked`: header `x-return-error`."""
    if asked:
        status = int(asked)
        return status, error(status, f"failure {status} as asked for", "SimulatedError")
    if options.failure_injection_rate and rng.uniform(0, 100) < options.failure_injection_rate:
        status, message, kind = _ANSWERS[rng.choice(options.failure_types or FAILURES)]
        return status, error(status, message, kind)
    return None
