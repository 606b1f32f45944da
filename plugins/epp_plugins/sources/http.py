"""What the sources that ask model servers over HTTP have in common: parameters, TLS, the target."""

from __future__ import annotations

import ssl
from typing import Annotated, Any

import msgspec

from epp.api import ConfigError, DataSource, Endpoint, Params, PluginContext, ScrapeTarget
from epp.datalayer.durations import seconds
from epp.datalayer.http_get import request_bytes


class HttpSourceParams(Params, frozen=True):
    """Parameters of every HTTP source."""

    scheme: Annotated[str, msgspec.Meta(pattern="^https?$", description="http or https")] = "http"
    path: Annotated[str, msgspec.Meta(pattern="^/", description="path and query to ask for")] = "/metrics"
    port: Annotated[
        int, msgspec.Meta(ge=0, le=65535, description="port to ask on instead of the endpoint's own; 0: its own")
    ] = 0
    insecure_skip_verify: Annotated[
        bool, msgspec.Meta(description="https: accept any certificate (servers in a cluster rarely have a proper one)")
    ] = True
    ca_cert_path: Annotated[str, msgspec.Meta(description="https: PEM file of the CAs to trust")] = ""
    client_cert_path: Annotated[str, msgspec.Meta(description="https: PEM file of our certificate (mTLS)")] = ""
    client_key_path: Annotated[
        str, msgspec.Meta(description="https: PEM file of our key; empty: in the file above")
    ] = ""
    interval: Annotated[
        str | float,
        msgspec.Meta(description='fixed time between two fetches ("10s", or seconds); empty: adapted to the traffic'),
    ] = ""

    def __post_init__(self) -> None:
        seconds(self.interval)
        request_bytes(ScrapeTarget("host", 1, self.path))
        if self.client_key_path and not self.client_cert_path:
            raise ValueError("clientKeyPath without clientCertPath: set both, or neither")


class HttpSource(DataSource[HttpSourceParams]):
    """Asks `scheme://address:port/path` of each endpoint."""

    Params = HttpSourceParams
    default_interval: float | None = None

    def __init__(self, params: HttpSourceParams, context: PluginContext) -> None:
        super().__init__(params, context)
        self._interval = seconds(params.interval) or self.default_interval
        self._tls = tls_context(params) if params.scheme == "https" else None

    @property
    def interval(self) -> float | None:
        return self._interval

    def target(self, endpoint: Endpoint) -> ScrapeTarget:
        return ScrapeTarget(endpoint.address, self.params.port or endpoint.port, self.params.path, self._tls)

    def dump_state(self) -> Any:
        return {"scheme": self.params.scheme, "path": self.params.path, "intervalSeconds": self._interval}


def tls_context(params: HttpSourceParams) -> ssl.SSLContext:
    """The client context of an https source. `ConfigError` names the file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=params.ca_cert_path or None)
    except OSError as error:
        raise ConfigError(
            f"cannot load CA certificates from {params.ca_cert_path}: {error}", path="caCertPath"
        ) from None
    # On from Python 3.13, and more than Go asks for: certificates of many a private authority do not say what it wants.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if params.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if params.client_cert_path:
        try:
            context.load_cert_chain(params.client_cert_path, params.client_key_path or None)
        except OSError as error:
            raise ConfigError(
                f"cannot load the client certificate {params.client_cert_path}: {error}", path="clientCertPath"
            ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context
