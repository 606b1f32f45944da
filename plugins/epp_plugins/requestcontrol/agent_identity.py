"""`agent-identity`: tells the requests of one coding agent or chat session from those of others.

What it does: takes the first non-empty of `additionalSessionHeaders` and the headers that known agents send
(`x-claude-code-session-id`, `x-session-affinity`, `session-id`, `session_id`), puts it on the request under
`agent-identity/<name>`, and makes it the fairness id where the request has no fairness header of its own.

When to use: with fairness between sessions, or to see load by session.

Parameters: `additionalSessionHeaders` (default none; looked at first, in this order). Metrics: none of its own;
fairness ids are labels of other metrics, which bound them.

Failure behaviour: a request with none of the headers stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from epp.api import AGENT_IDENTITY, DataKey, InferenceRequest, Params, Plugin, PluginContext

SESSION_HEADERS = ("x-claude-code-session-id", "x-session-affinity", "session-id", "session_id")
DEFAULT_FAIRNESS_ID = "default-flow"


class AgentIdentityParams(Params, frozen=True):
    """Header names are compared without regard to case."""

    additional_session_headers: Annotated[
        tuple[str, ...], Meta(description="request headers looked at before the known ones")
    ] = ()


class AgentIdentity(Plugin[AgentIdentityParams]):
    """Sets `agent-identity/<name>`, a string, and the fairness id."""

    type = "agent-identity"
    stability = "alpha"
    Params = AgentIdentityParams

    def __init__(self, params: AgentIdentityParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._headers = (*(header.lower() for header in params.additional_session_headers), *SESSION_HEADERS)
        self._key = DataKey(AGENT_IDENTITY, self.name)

    @property
    def produces(self) -> Sequence[DataKey]:
        return (self._key,)

    def on_request(self, request: InferenceRequest) -> None:
        """Runs after the fairness header has been read: an explicit one wins."""
        headers = request.headers
        for name in self._headers:
            identity = headers.get(name, "").strip()
            if identity:
                request.attributes[self._key] = identity
                if request.fairness_id == DEFAULT_FAIRNESS_ID:
                    request.fairness_id = identity
                return
