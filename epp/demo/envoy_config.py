"""Envoy bootstraps that put the picker in front of model servers the way known gateways do.

| flavour | body modes | reaches the picked endpoint by | served-endpoint metadata |
|---|---|---|---|
| `standalone` | full duplex | ORIGINAL_DST by header | no |
| `light` | full duplex request, no response body, response trailers SEND | ORIGINAL_DST by header | no |
| `istio` | full duplex, per-route override of an inert filter | override_host by metadata | yes |
| `kgateway` | full duplex | subset load balancing by metadata | no |
| `buffered` | request BUFFERED, response NONE | ORIGINAL_DST by header | no |
| `partial` | request BUFFERED_PARTIAL (cut at the buffer limit), response NONE | ORIGINAL_DST by header | no |
| `streamed` | request and response STREAMED without waiting | ORIGINAL_DST by header | no |

All values are those that the gateways' own control planes write; ports and buffer limits are parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FLAVOURS = ("standalone", "light", "istio", "kgateway", "buffered", "partial", "streamed")
DESTINATION = "x-gateway-destination-endpoint"

_TYPE = "type.googleapis.com/envoy."
_FULL_DUPLEX = {
    "request_header_mode": "SEND",
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_header_mode": "SEND",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "response_trailer_mode": "SEND",
}
_MODES: dict[str, dict[str, str]] = {
    "standalone": _FULL_DUPLEX,
    "istio": _FULL_DUPLEX,
    "kgateway": _FULL_DUPLEX,
    # No token passes the picker, and the end of the stream still tells when the answer has ended.
    "light": {**_FULL_DUPLEX, "response_body_mode": "NONE"},
    "buffered": {
        "request_header_mode": "SEND",
        "request_body_mode": "BUFFERED",
        "response_header_mode": "SEND",
        "response_body_mode": "NONE",
    },
    "partial": {
        "request_header_mode": "SEND",
        "request_body_mode": "BUFFERED_PARTIAL",
        "response_header_mode": "SEND",
        "response_body_mode": "NONE",
    },
    "streamed": {
        "request_header_mode": "SEND",
        "request_body_mode": "STREAMED",
        "response_header_mode": "SEND",
        "response_body_mode": "STREAMED",
    },
}


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a bootstrap needs to know. `upstreams` are `(ip, port)`; only `istio` and `kgateway` list them.

    `subset` puts a subset hint into the request's dynamic metadata, as a gateway that knows its endpoints does.
    `buffer_limit` is Envoy's per-connection buffer, and with it the largest body message.
    """

    flavour: str
    listen_port: int
    admin_port: int
    picker_port: int
    upstreams: tuple[tuple[str, int], ...] = ()
    picker_tls: bool = True
    health_check: bool = False
    health_interval: str = "1s"
    fail_open: bool = False
    buffer_limit: int = 1024 * 1024
    upstream_http2: bool = False
    subset: tuple[str, ...] | None = None
    pickers: tuple[int, ...] = field(default=())


def bootstrap(gateway: Gateway) -> dict[str, Any]:
    """The bootstrap as Envoy reads it (JSON is YAML)."""
    return {
        "admin": {"address": _address("127.0.0.1", gateway.admin_port)},
        "static_resources": {
            "listeners": [_listener(gateway)],
            "clusters": [_model_servers(gateway), _picker_cluster(gateway)],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(gateway: Gateway) -> dict[str, Any]:
    return {
        "name": "gateway",
        "address": _address("127.0.0.1", gateway.listen_port),
        "per_connection_buffer_limit_bytes": gateway.buffer_limit,
        "filter_chains": [{"filters": [_connection_manager(gateway)]}],
    }


def _connection_manager(gateway: Gateway) -> dict[str, Any]:
    filters = [
        *_subset_hint(gateway),
        _picker_filter(gateway),
        *_header_to_metadata(gateway),
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
        },
    ]
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "gateway",
            "codec_type": "AUTO",
            "use_remote_address": True,
            "http2_protocol_options": {"max_concurrent_streams": 10_000},
            "route_config": {
                "name": "routes",
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_route(gateway)]}],
            },
            "http_filters": filters,
        },
    }


def _route(gateway: Gateway) -> dict[str, Any]:
    route: dict[str, Any] = {"match": {"prefix": "/"}, "route": {"cluster": "model-servers", "timeout": "0s"}}
    if gateway.flavour == "istio":
        route["route"]["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled",
            "num_retries": 2,
            "host_selection_retry_max_attempts": 5,
        }
        route["typed_per_filter_config"] = {
            "envoy.filters.http.ext_proc": {
                "@type": _TYPE + "extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
                "overrides": {
                    "failure_mode_allow": gateway.fail_open,
                    "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
                    "processing_mode": _MODES["istio"],
                },
            }
        }
    return route


def _picker_filter(gateway: Gateway) -> dict[str, Any]:
    inert = gateway.flavour == "istio"
    config: dict[str, Any] = {
        "@type": _TYPE + "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}, "timeout": "10s"},
        "failure_mode_allow": True if inert else gateway.fail_open,
        "processing_mode": {"request_header_mode": "SKIP", "response_header_mode": "SKIP"}
        if inert
        else _MODES[gateway.flavour],
        "message_timeout": "5s" if gateway.flavour == "kgateway" else "1000s",
        "metadata_options": {
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    }
    if gateway.flavour == "streamed":
        config["send_body_without_waiting_for_header_response"] = True
    return {"name": "envoy.filters.http.ext_proc", "typed_config": config}


def _subset_hint(gateway: Gateway) -> list[dict[str, Any]]:
    if gateway.subset is None:
        return []
    entry = {
        "metadata_namespace": "envoy.lb.subset_hint",
        "value": {"x-gateway-destination-endpoint-subset": list(gateway.subset)},
        "allow_overwrite": True,
    }
    return [
        {
            "name": "envoy.filters.http.set_metadata",
            "typed_config": {"@type": _TYPE + "extensions.filters.http.set_metadata.v3.Config", "metadata": [entry]},
        }
    ]


def _header_to_metadata(gateway: Gateway) -> list[dict[str, Any]]:
    if gateway.flavour != "kgateway":
        return []
    rule = {
        "header": DESTINATION,
        "on_header_present": {"metadata_namespace": "envoy.lb", "key": DESTINATION, "type": "STRING"},
        "remove": False,
    }
    return [
        {
            "name": "envoy.filters.http.header_to_metadata",
            "typed_config": {
                "@type": _TYPE + "extensions.filters.http.header_to_metadata.v3.Config",
                "request_rules": [rule],
            },
        }
    ]


def _model_servers(gateway: Gateway) -> dict[str, Any]:
    cluster: dict[str, Any] = {"name": "model-servers", "connect_timeout": "5s"}
    cluster["circuit_breakers"] = {
        "thresholds": [{"max_connections": 40000, "max_pending_requests": 40000, "max_requests": 40000}]
    }
    if gateway.upstream_http2:
        cluster["typed_extension_protocol_options"] = _HTTP2
    if gateway.flavour == "istio":
        metadata = [{"metadata": {"key": "envoy.lb", "path": [{"key": DESTINATION}]}}]
        round_robin = {
            "name": "envoy.load_balancing_policies.round_robin",
            "typed_config": {"@type": _TYPE + "extensions.load_balancing_policies.round_robin.v3.RoundRobin"},
        }
        override = {
            "@type": _TYPE + "extensions.load_balancing_policies.override_host.v3.OverrideHost",
            "override_host_sources": metadata,
            "selected_host_key": {"key": "envoy.lb", "path": [{"key": DESTINATION + "-served"}]},
            "fallback_policy": {"policies": [{"typed_extension_config": round_robin}]},
        }
        cluster["type"] = "STATIC"
        cluster["lb_policy"] = "CLUSTER_PROVIDED"
        cluster["load_balancing_policy"] = {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.override_host",
                        "typed_config": override,
                    }
                }
            ]
        }
        cluster["load_assignment"] = _assignment("model-servers", gateway.upstreams, labelled=False)
    elif gateway.flavour == "kgateway":
        cluster["type"] = "STATIC"
        cluster["lb_subset_config"] = {
            "fallback_policy": "ANY_ENDPOINT",
            "subset_selectors": [{"keys": [DESTINATION]}],
        }
        cluster["load_assignment"] = _assignment("model-servers", gateway.upstreams, labelled=True)
    else:
        cluster["type"] = "ORIGINAL_DST"
        cluster["lb_policy"] = "CLUSTER_PROVIDED"
        cluster["original_dst_lb_config"] = {"use_http_header": True, "http_header_name": DESTINATION}
    return cluster


def _assignment(name: str, upstreams: tuple[tuple[str, int], ...], *, labelled: bool) -> dict[str, Any]:
    endpoints: list[dict[str, Any]] = []
    for host, port in upstreams:
        endpoint: dict[str, Any] = {"endpoint": {"address": _address(host, port)}}
        if labelled:
            endpoint["metadata"] = {"filter_metadata": {"envoy.lb": {DESTINATION: f"{host}:{port}"}}}
        endpoints.append(endpoint)
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"initial_stream_window_size": 65536, "initial_connection_window_size": 1048576}
        },
    }
}


def _picker_cluster(gateway: Gateway) -> dict[str, Any]:
    ports = gateway.pickers or (gateway.picker_port,)
    cluster: dict[str, Any] = {
        "name": "picker",
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {
            "thresholds": [{"max_connections": 40000, "max_pending_requests": 40000, "max_requests": 40000}]
        },
        "typed_extension_protocol_options": _HTTP2,
        "load_assignment": _assignment("picker", tuple(("127.0.0.1", port) for port in ports), labelled=False),
    }
    if gateway.picker_tls:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {"validation_context": {}},
            },
        }
    if gateway.health_check:
        check: dict[str, Any] = {
            "timeout": "2s",
            "interval": gateway.health_interval,
            # 60 s by default, and that also delays the first check under traffic.
            "no_traffic_interval": gateway.health_interval,
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
            "reuse_connection": True,
            "grpc_health_check": {"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"},
        }
        if gateway.picker_tls:
            check["tls_options"] = {"alpn_protocols": ["h2"]}
        cluster["health_checks"] = [check]
        # Of several replicas with leader election one is healthy: by default Envoy takes that for a failing check, and
        # sends requests to all of them. And it keeps back a change of health that follows another one for a second (the
        # merge window), which is what a leader that dies and the next one are: requests would fail that much longer.
        cluster["common_lb_config"] = {"healthy_panic_threshold": {"value": 0.0}, "update_merge_window": "0s"}
    return cluster
