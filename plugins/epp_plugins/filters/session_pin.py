"""What `session-affinity-filter` and `session-affinity-scorer` share: which candidate a session belongs to.

Strategies:

- `encoded_endpoint_header`: the client carries the binding. The response gets the header `x-session-token` with
  base64(`namespace/name`) of the endpoint that answered, and the client sends it back with its next request. Works with
  any number of picker replicas. A token that cannot be read counts as none.
- `session_id`: the client sends an id of its own (header `x-session-id`, or what another plugin found out), and the
  picker remembers which endpoint its first request went to. Nothing is written to the response. A session that is not
  bound has no preference; one whose endpoint is not a candidate goes where the other plugins send it, and is bound to
  that. Each replica has its own memory.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np

import epp
from epp_plugins.filters.session_bindings import SessionBindings

_PIN = "SessionPin"
_DEFAULT_TOKEN_HEADER = "x-session-token"
_DEFAULT_ID_HEADER = "x-session-id"


class EncodedEndpointHeaderConfig(epp.Params, frozen=True):
    """For the strategy `encoded_endpoint_header`."""

    header: Annotated[str, msgspec.Meta(description="request and response header with the token")] = (
        _DEFAULT_TOKEN_HEADER
    )


class SessionIdSource(epp.Params, frozen=True):
    """One place where a session id may be: a header, or an attribute that another plugin sets.

    `attribute` is the type of the attribute (`SessionIDDataKey`, `agent-identity`), `producer` the name of the plugin;
    empty: the default one.
    """

    header: Annotated[str, msgspec.Meta(description="request header with the id")] = ""
    attribute: Annotated[str, msgspec.Meta(description="or: type of the attribute with the id")] = ""
    producer: Annotated[str, msgspec.Meta(description="plugin that sets the attribute; empty: the default one")] = ""

    def __post_init__(self) -> None:
        if bool(self.header) == bool(self.attribute):
            said = "both are" if self.header else "neither is"
            raise ValueError(f"exactly one of header and attribute must be set, {said}")
        if self.producer and not self.attribute:
            raise ValueError("producer belongs to an attribute, not to a header")

    @property
    def key(self) -> epp.DataKey:
        """Where the attribute is found on the request."""
        default = epp.DEFAULT_PRODUCERS.get(self.attribute, self.attribute)
        return epp.DataKey(self.attribute, self.producer or default)


class SessionIdConfig(epp.Params, frozen=True):
    """For the strategy `session_id`. `sources`: the first that has an id wins; none: the header `x-session-id`."""

    sources: Annotated[
        tuple[SessionIdSource, ...], msgspec.Meta(description="the first with an id wins; none: header x-session-id")
    ] = ()
    eviction_ttl_seconds: Annotated[float, msgspec.Meta(gt=0, description="how long an unused session is kept")] = 300.0
    eviction_sweep_seconds: Annotated[float, msgspec.Meta(gt=0, description="how often old ones are cleared")] = 10.0


class SessionAffinityParams(epp.Params, frozen=True):
    """Names and defaults of llm-d-router."""

    strategy: Annotated[
        Literal["encoded_endpoint_header", "session_id"], msgspec.Meta(description="who remembers: client or picker")
    ] = "encoded_endpoint_header"
    profile_name: Annotated[
        str, msgspec.Meta(description="profile whose endpoint the session is pinned to; empty: the primary one")
    ] = ""
    encoded_endpoint_header_config: Annotated[
        EncodedEndpointHeaderConfig, msgspec.Meta(description="of encoded_endpoint_header")
    ] = EncodedEndpointHeaderConfig()
    session_id_config: Annotated[
        SessionIdConfig,
        msgspec.Meta(description="of session_id"),
    ] = SessionIdConfig()


class SessionPin(epp.Plugin[SessionAffinityParams]):
    """The part of a plugin that knows sessions."""

    stability = "alpha"
    Params = SessionAffinityParams

    def __init__(self, params: SessionAffinityParams, context: epp.PluginContext) -> None:
        super().__init__(params, context)
        self._header = params.encoded_endpoint_header_config.header.strip().lower() or _DEFAULT_TOKEN_HEADER
        config = params.session_id_config
        self._sources = config.sources or (SessionIdSource(header=_DEFAULT_ID_HEADER),)
        self._bindings: SessionBindings | None = None
        if params.strategy == "session_id":
            self._bindings = SessionBindings(config.eviction_ttl_seconds, config.eviction_sweep_seconds, context.clock)
        self._pin = epp.DataKey(_PIN, self.name)
        self._rows: dict[str, int] = {}
        self._version = -1

    @property
    def consumes_if_present(self) -> Sequence[epp.DataKey]:
        if self._bindings is None:
            return ()
        return tuple(source.key for source in self._sources if source.attribute)

    def pinned(self, request: epp.InferenceRequest, endpoints: epp.Endpoints) -> int | None:
        """The position of the candidate that the session belongs to; None: no session, or its endpoint is not there."""
        if self._bindings is None:
            key = _decoded(request.headers.get(self._header, ""))
            return None if not key else self._position(key, endpoints)
        session = self._session(request)
        bound = self._bindings.get(session) if session else None
        if bound is None:
            return None
        position = self._position(bound, endpoints)
        if position is not None:
            request.attributes[self._pin] = bound  # it could have been picked: whoever is, the session stays
        return position

    def on_picked(self, request: epp.InferenceRequest, result: epp.SchedulingResult) -> None:
        """Remember where the session went."""
        profile = result.profiles.get(self.params.profile_name or result.primary)
        if profile is None or not profile.picked:
            return
        key = profile.picked[0].key
        if self._bindings is None:
            request.attributes[self._pin] = key
            return
        stays = request.attributes.pop(self._pin, key)
        if stays == key:
            session = self._session(request)
            if session:
                self._bindings.bind(session, key)

    def on_response_headers(self, request: epp.InferenceRequest, response: epp.InferenceResponse) -> None:
        """Hand the client its token."""
        if self._bindings is not None:
            return
        key = request.attributes.get(self._pin)
        if key is not None:
            key = self._served(response) or key
            response.set_headers[self._header] = b64encode(key.encode()).decode("ascii")

    def dump_state(self) -> dict[str, int | str]:
        """How many sessions are remembered."""
        if self._bindings is None:
            return {"strategy": self.params.strategy}
        return {"strategy": self.params.strategy, "sessions": len(self._bindings)}

    def _served(self, response: epp.InferenceResponse) -> str | None:
        """Who answered in the end: the gateway may have gone on to the next destination. Another profile's server
        (prefill) is not who answered."""
        if self.params.profile_name or not response.served:
            return None
        table = self.context.table
        row = table.row_of(response.served)
        endpoint = None if row is None else table.endpoints[row]
        return None if endpoint is None else endpoint.key

    def _session(self, request: epp.InferenceRequest) -> str:
        for source in self._sources:
            found = (
                request.headers.get(source.header.lower(), "")
                if source.header
                else request.attributes.get(source.key, "")
            )
            if isinstance(found, str) and (session := found.strip()):
                return session
        return ""

    def _position(self, key: str, endpoints: epp.Endpoints) -> int | None:
        table = endpoints.table
        if self._version != table.version:
            self._version = table.version
            self._rows = {endpoint.key: row for row, endpoint in enumerate(table.endpoints) if endpoint is not None}
        row = self._rows.get(key)
        if row is None:
            return None
        there = np.flatnonzero(endpoints.rows == row)
        return int(there[0]) if there.size else None


def _decoded(token: str) -> str:
    """The endpoint key in a token, "" for whatever is none: the token comes from a client."""
    if not token:
        return ""
    try:
        return b64decode(token.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
