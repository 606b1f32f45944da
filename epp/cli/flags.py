"""The flags of `epp serve`: those of llm-d-router, written the way Go programs take them, and ours.

`--flag value` and `--flag=value`; booleans as `--flag` or `--flag=false`; `-v 4`, `-v=4`, `-v4` and `--v 4`.
One table, the fields of `ServeOptions`, is the parser, the help and the documentation.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from epp.config.duration import Duration
from epp.config.errors import did_you_mean
from epp.config.quantity import Quantity


class FlagError(Exception):
    """A command line that cannot be used; the message says which flag and what to do."""


def boolean(text: str) -> bool:
    """As Go's strconv.ParseBool, in any case."""
    if text.lower() in ("1", "t", "true"):
        return True
    if text.lower() in ("0", "f", "false"):
        return False
    raise ValueError(f"expected true or false, got {text!r}")


def port(text: str) -> int:
    """0 (any free port) to 65535."""
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise ValueError(f"expected a port from 0 to 65535, got {text!r}")
    return number


def ports(text: str) -> tuple[int, ...]:
    """A comma list of 1 to 8 ports; repeated ones count once."""
    found = tuple(dict.fromkeys(port(part.strip()) for part in text.strip("[]").split(",") if part.strip()))
    if len(found) > 8:
        raise ValueError(f"expected at most 8 ports, got {len(found)}")
    return found


def names(text: str) -> tuple[str, ...]:
    """A comma list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def seconds(text: str) -> float:
    """A Go duration that is not negative."""
    value = float(Duration.parse(text))
    if value < 0:
        raise ValueError(f"expected a duration of at least 0, got {text!r}")
    return value


def size(text: str) -> int:
    """A Kubernetes quantity of bytes, a trailing B allowed; empty or 0: the default of the transport."""
    stripped = text.strip().removesuffix("B").removesuffix("b")
    value = int(Quantity.parse(stripped)) if stripped else 0
    if value < 0:
        raise ValueError(f"expected a size of at least 0, got {text!r}")
    return value


def positive_size(text: str) -> int:
    """A Kubernetes quantity of bytes, at least one."""
    value = size(text)
    if not value:
        raise ValueError(f"expected a size above 0 such as 64Mi, got {text!r}")
    return value


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a whole number such as 4, got {text!r}") from None


def share(text: str) -> float:
    """A share of one CPU core, above 0."""
    value = float(text)
    if not 0 < value <= 64:
        raise ValueError(f"expected a share of a core such as 0.25, got {text!r}")
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    """One of some words; empty is the default."""

    def check(text: str) -> str:
        if text and text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, got {text!r}")
        return text

    return check


def zap_level(text: str) -> str:
    """debug, info, error, panic, or a verbosity above 0."""
    if text and text not in ("debug", "info", "warn", "error", "panic") and not (text.isdigit() and int(text) > 0):
        raise ValueError(f"expected debug, info, warn, error, panic or a number above 0, got {text!r}")
    return text


def flag(default: Any, help: str, read: Callable[[str], Any] = str, *, ours: bool = False, text: str = "") -> Any:
    """A field of `ServeOptions`. `text` is the default as it is written, where that differs from the value."""
    return field(default=default, metadata={"help": help, "read": read, "ours": ours, "text": text})


TLS_VERSIONS = ("VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13")
TIME_ENCODINGS = ("epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What `epp serve` was asked to do. Durations in seconds, sizes in bytes, empty texts mean "not given"."""

    grpc_port: int = flag(9002, "port of ext_proc", port)
    grpc_health_port: int = flag(9003, "port of grpc.health.v1 alone, always plaintext", port)
    metrics_port: int = flag(9090, "port of /metrics and /debug/plugins/state", port)
    health_checking: bool = flag(False, "serve grpc.health.v1 on the ext_proc port too", boolean)
    ha_enable_leader_election: bool = flag(False, "only the leader of several replicas is ready", boolean)
    drain_timeout: float = flag(30.0, "time between 'not serving' and the stop on SIGTERM", seconds, text="30s")
    grpc_max_recv_msg_size: int = flag(0, "largest message taken, e.g. 16Mi; 0: the transport's default", size)
    grpc_max_send_msg_size: int = flag(0, "largest message sent; 0: the transport's default", size)
    pool_group: str = flag("inference.networking.k8s.io", "API group of the InferencePool")
    pool_namespace: str = flag("", "namespace of the pool; empty: $NAMESPACE, then `default`")
    pool_name: str = flag("", "InferencePool to serve")
    endpoint_selector: str = flag("", "label selector of pods, instead of a pool")
    endpoint_target_ports: tuple[int, ...] = flag((), "1 to 8 ports of the selected pods, comma list", ports)
    disable_endpoint_subset_filter: bool = flag(False, "ignore the gateway's subset hint", boolean)
    emit_endpoint_scores: bool = flag(False, "tell the gateway every candidate's score as metadata", boolean)
    refresh_metrics_interval: float = flag(
        0.05, "fastest rate of asking one endpoint for its metrics; at least 50ms", seconds, text="50ms"
    )
    refresh_prometheus_metrics_interval: float = flag(5.0, "rate of refreshing the pool's gauges", seconds, text="5s")
    metrics_staleness_threshold: float = flag(
        2.0, "age up to which an endpoint's metrics count as fresh in the pool's gauges", seconds, text="2s"
    )
    v: int = flag(2, "verbosity: 1 warnings, 2 information, 3 verbose, 4 debug, 5 trace", whole)
    zap_devel: bool = flag(True, "development mode: console encoder unless --zap-encoder says otherwise", boolean)
    zap_encoder: str = flag(
        "", "json or console; empty: console in development mode, else json", one_of("json", "console")
    )
    zap_log_level: str = flag("", "debug, info, warn, error or a verbosity; wins over -v", zap_level)
    zap_stacktrace_level: str = flag(
        "", "level from which stack traces are logged: info, error or panic", one_of("info", "warn", "error", "panic")
    )
    zap_time_encoding: str = flag("", "how times are logged: " + ", ".join(TIME_ENCODINGS), one_of(*TIME_ENCODINGS))
    tracing: bool = flag(True, "OpenTelemetry traces, when the `otel` extra is installed", boolean)
    enable_pprof: bool = flag(True, "profiles of the Go runtime on the metrics port", boolean)
    secure_serving: bool = flag(True, "TLS on the ext_proc port; self-signed without --cert-path", boolean)
    cert_path: str = flag("", "directory with tls.crt and tls.key")
    enable_cert_reload: bool = flag(False, "watch --cert-path; a bad pair keeps the old one", boolean)
    tls_min_version: str = flag("", "lowest TLS version: " + ", ".join(TLS_VERSIONS), one_of(*TLS_VERSIONS))
    tls_cipher_suites: tuple[str, ...] = flag((), "comma list of suites up to TLS 1.2", names)
    metrics_endpoint_auth: bool = flag(True, "let Kubernetes authorise readers of /metrics", boolean)
    metrics_cert_dir: str = flag("", "directory with tls.crt and tls.key for the metrics port")
    metrics_client_ca_file: str = flag("", "CA that clients of the metrics port must be signed by")
    enable_grpc_stream_metrics: bool = flag(False, "metrics of ext_proc streams", boolean)
    config_file: str = flag("", "EndpointPickerConfig to load")
    config_text: str = flag("", "EndpointPickerConfig as text, instead of a file")
    allow_experimental_plugins: bool = flag(False, "allow plugins of stability alpha", boolean)

    transport: str = flag("own", "own or grpcio (needs the `grpcio` extra)", one_of("own", "grpcio"), ours=True)
    listen_address: str = flag("", "address to listen on; empty: all, IPv4 and IPv6", ours=True)
    tls_client_ca_file: str = flag("", "CA that clients of the ext_proc port must be signed by (mTLS)", ours=True)
    max_request_body_bytes: int = flag(
        64 * 2**20, "larger request bodies get 413", positive_size, ours=True, text="64Mi"
    )
    response_bypass: bool = flag(
        False, "end each stream with the pick: no usage, no response metrics, no model-name restore", boolean, ours=True
    )
    legacy_metrics: bool = flag(True, "also expose metrics under their deprecated names", boolean, ours=True)
    ha_lease_duration: float = flag(
        15.0, "how long the leader's lease lasts without renewal", seconds, ours=True, text="15s"
    )
    ha_retry_period: float = flag(
        2.0, "time between two attempts to take or renew the leader's lease", seconds, ours=True, text="2s"
    )
    declarations_file: str = flag(
        "", "InferenceObjective and InferenceModelRewrite manifests, where there is no Kubernetes", ours=True
    )
    scrape_cpu_budget: float = flag(0.2, "share of one core that reading endpoints' metrics may take", share, ours=True)

    @property
    def verbosity(self) -> int:
        """--zap-log-level if given, else -v. 0: errors only, 1 warnings, 2 information, 4 debug, 5 trace."""
        level = self.zap_log_level
        if not level:
            return self.v
        named = {"debug": 4, "info": 2, "warn": 1, "error": 0, "panic": 0}
        return named[level] if level in named else int(level)

    @property
    def log_format(self) -> str:
        """`json` or `console`."""
        return self.zap_encoder or ("console" if self.zap_devel else "json")


REMOVED = {
    "total-queued-requests-metric": "`queuedRequestsSpec` of the plugin core-metrics-extractor",
    "total-running-requests-metric": "`runningRequestsSpec` of the plugin core-metrics-extractor",
    "kv-cache-usage-percentage-metric": "`kvUsageSpec` of the plugin core-metrics-extractor",
    "lora-info-metric": "`loraSpec` of the plugin core-metrics-extractor",
    "cache-info-metric": "`cacheInfoSpec` of the plugin core-metrics-extractor",
    "model-server-metrics-scheme": "`scheme` of the plugin metrics-data-source",
    "model-server-metrics-path": "`path` of the plugin metrics-data-source",
    "model-server-metrics-port": "`port` of the plugin metrics-data-source",
    "model-server-metrics-https-insecure-skip-verify": "`insecureSkipVerify` of the plugin metrics-data-source",
}
"""Flags that stop the start, as in llm-d-router, and what took their place. Platforms that install older routers
(KServe) still pass some of them."""

NOT_YET_EFFECTIVE = {
    "grpc-max-send-msg-size": "what is sent is cut to 62 000 bytes a message anyway",
    "enable-pprof": "there is no Go runtime to profile: use py-spy on the process",
    "zap-stacktrace-level": "stack traces come with errors nobody expected, and only with those",
}
"""Flags that are accepted so that existing arguments work, and why they change nothing. Said once at the start."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag as users see it. `default` as they would write it."""

    name: str
    default: str
    help: str
    ours: bool
    boolean: bool


def serve_flags() -> list[Flag]:
    """All flags of `epp serve`, in the order of the help."""
    return [
        Flag(
            name=option.name.replace("_", "-"),
            default=option.metadata["text"] or _written(option.default),
            help=option.metadata["help"],
            ours=option.metadata["ours"],
            boolean=option.metadata["read"] is boolean,
        )
        for option in dataclasses.fields(ServeOptions)
    ]


def parse_serve(argv: Sequence[str]) -> tuple[ServeOptions, tuple[str, ...]]:
    """The options and what to warn about. Raises `FlagError`."""
    given = vars(_parser().parse_args(list(argv)))
    for name, instead in REMOVED.items():
        if given.pop(name.replace("-", "_"), None) is not None:
            raise FlagError(f"--{name} has been removed: set {instead}")
    options = ServeOptions(**given)
    _check_together(options)
    warnings = [
        f"--{name}: {reason}"
        for name, reason in NOT_YET_EFFECTIVE.items()
        if name.replace("-", "_") in given and given[name.replace("-", "_")] != _default(name)
    ]
    if 0 < options.refresh_metrics_interval < 0.05 or options.refresh_metrics_interval == 0:
        warnings.append("--refresh-metrics-interval is below 50ms: 50ms is used")
        options = dataclasses.replace(options, refresh_metrics_interval=0.05)
    if options.tls_cipher_suites and options.tls_min_version == "VersionTLS13":
        warnings.append("--tls-cipher-suites has no effect beside --tls-min-version=VersionTLS13: TLS 1.3 has its own")
    return options, tuple(warnings)


def check_pool(options: ServeOptions, *, discovery: bool) -> None:
    """Endpoints come from somewhere. `discovery`: the configuration has a discovery plugin. Raises `FlagError`."""
    if discovery:
        if options.endpoint_selector:
            raise FlagError(
                "--endpoint-selector and `dataLayer.discovery` both say where endpoints come from: keep one"
            )
        return
    if options.declarations_file and options.pool_name:
        raise FlagError(
            "--declarations-file is for pickers without --pool-name: there the objects come from Kubernetes"
        )
    if not options.pool_name and not options.endpoint_selector:
        raise FlagError(
            "nothing says where endpoints come from: give --pool-name or --endpoint-selector in Kubernetes, or add a "
            "`file-discovery` plugin to the configuration and name it in `dataLayer.discovery.pluginRef`"
        )


def serve_help() -> str:
    """The text of `epp serve --help`."""
    return _parser().format_help()


def _check_together(options: ServeOptions) -> None:
    if options.config_file and options.config_text:
        raise FlagError("--config-file and --config-text are both given: keep one")
    if options.pool_name and options.endpoint_selector:
        raise FlagError("--pool-name and --endpoint-selector are both given: keep one")
    used: dict[int, str] = {}
    for name in ("grpc-port", "grpc-health-port", "metrics-port"):
        number = getattr(options, name.replace("-", "_"))
        if number and (other := used.setdefault(number, name)) != name:
            raise FlagError(f"--{other} and --{name} are both {number}: give one of them another port")
    if options.endpoint_selector and not options.endpoint_target_ports:
        raise FlagError("--endpoint-selector needs --endpoint-target-ports")
    if options.endpoint_target_ports and not options.endpoint_selector:
        raise FlagError("--endpoint-target-ports needs --endpoint-selector")
    if options.metrics_client_ca_file and not options.metrics_cert_dir:
        raise FlagError("--metrics-client-ca-file needs --metrics-cert-dir")
    if options.metrics_cert_dir and not options.metrics_client_ca_file and not options.metrics_endpoint_auth:
        raise FlagError("--metrics-cert-dir needs --metrics-client-ca-file or --metrics-endpoint-auth")
    if options.tls_client_ca_file and not options.secure_serving:
        raise FlagError("--tls-client-ca-file needs --secure-serving")
    if options.enable_cert_reload and not options.cert_path:
        raise FlagError("--enable-cert-reload needs --cert-path")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlagError(message.removeprefix("argument "))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        for word in unknown:
            if word.startswith("-"):
                name = word.lstrip("-").partition("=")[0]
                hint = did_you_mean(name, [option.name for option in serve_flags()])
                raise FlagError(f"unknown flag {word.partition('=')[0]}" + (f" ({hint})" if hint else ""))
            raise FlagError(f"unexpected argument {word!r}: flags are written --name=value")
        return parsed


def _parser() -> _Parser:
    parser = _Parser(
        prog="epp serve",
        description="Serve ext_proc: pick an endpoint for every request of the gateway.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {
        False: parser.add_argument_group("flags of llm-d-router"),
        True: parser.add_argument_group("flags of epp alone"),
    }
    readers = {option.name: option.metadata["read"] for option in dataclasses.fields(ServeOptions)}
    for item in serve_flags():
        read = readers[item.name.replace("-", "_")]
        extra: dict[str, Any] = {"nargs": "?", "const": True} if item.boolean else {}
        spellings = ["-v", "--v"] if item.name == "v" else [f"--{item.name}"]
        note = "; no effect yet" if item.name in NOT_YET_EFFECTIVE else ""
        groups[item.ours].add_argument(
            *spellings,
            type=_readable(read),
            metavar="BOOL" if item.boolean else "VALUE",
            help=f"{item.help}{note} (default {item.default or 'none'})".replace("%", "%%"),
            **extra,
        )
    for name in REMOVED:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, nargs="?", const="")
    return parser


def _readable(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse drops the text of a ValueError; keep it."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _default(name: str) -> Any:
    return next(o.default for o in dataclasses.fields(ServeOptions) if o.name == name.replace("-", "_"))


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
