"""`session-id-producer`: which session a request belongs to, from a header or a cookie.

What it does: puts the value on the request under `SessionIDDataKey/<name>`, for plugins that keep a session on one
endpoint.

When to use: with `session-affinity-scorer` or `session-affinity-filter` when they are told to read the attribute of a
producer instead of a header.

Parameters: exactly one of `headerName` (without regard to case) and `cookieName`. Metrics: none.

Failure behaviour: a request without the header or cookie, or with an empty one, has no session; nothing is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from epp.api import SESSION_ID, DataKey, Endpoints, InferenceRequest, Params, PluginContext, Producer


class SessionIdParams(Params, frozen=True):
    """Where the session id is found."""

    header_name: Annotated[str, Meta(description="request header with the id; or")] = ""
    cookie_name: Annotated[str, Meta(description="cookie with the id")] = ""

    def __post_init__(self) -> None:
        if bool(self.header_name) == bool(self.cookie_name):
            said = "both are" if self.header_name else "neither is"
            raise ValueError(f"exactly one of headerName and cookieName must be set, {said}")


class SessionIdProducer(Producer[SessionIdParams]):
    """Sets `SessionIDDataKey/<name>`, a string."""

    type = "session-id-producer"
    stability = "beta"
    Params = SessionIdParams

    def __init__(self, params: SessionIdParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._header = params.header_name.lower()
        self._key = DataKey(SESSION_ID, self.name)

    @property
    def produces(self) -> Sequence[DataKey]:
        return (self._key,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints) -> None:
        """Set the attribute when there is a session."""
        if self._header:
            session = request.headers.get(self._header, "").strip()
        else:
            session = cookie(request.headers.get("cookie", ""), self.params.cookie_name)
        if session:
            request.attributes[self._key] = session


def cookie(header: str, name: str) -> str:
    """The value of a cookie in a `Cookie` header (RFC 6265: `name=value; name=value`), "" when it is not there.

    Names are compared as they are; the first of several wins; quotes around the value are taken off.
    """
    for pair in header.split(";"):
        found, separator, value = pair.partition("=")
        if separator and found.strip() == name:
            value = value.strip()
            return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
    return ""
