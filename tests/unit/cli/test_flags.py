"""Flags as Go programs take them; every flag of llm-d-router is there with its default."""

from __future__ import annotations

import dataclasses

import pytest

from epp.cli.flags import (
    NOT_YET_EFFECTIVE,
    REMOVED,
    FlagError,
    ServeOptions,
    check_pool,
    parse_serve,
    serve_flags,
    serve_help,
)

UPSTREAM = {
    "grpc-port": "9002", "grpc-health-port": "9003", "metrics-port": "9090", "health-checking": "false",
    "ha-enable-leader-election": "false", "drain-timeout": "30s", "grpc-max-recv-msg-size": "0",
    "grpc-max-send-msg-size": "0", "pool-group": "inference.networking.k8s.io", "pool-namespace": "", "pool-name": "",
    "endpoint-selector": "", "endpoint-target-ports": "", "disable-endpoint-subset-filter": "false",
    "emit-endpoint-scores": "false", "refresh-metrics-interval": "50ms", "refresh-prometheus-metrics-interval": "5s",
    "metrics-staleness-threshold": "2s", "v": "2", "zap-devel": "true", "zap-encoder": "", "zap-log-level": "",
    "zap-stacktrace-level": "", "zap-time-encoding": "", "tracing": "true", "enable-pprof": "true",
    "secure-serving": "true", "cert-path": "", "enable-cert-reload": "false", "tls-min-version": "",
    "tls-cipher-suites": "", "metrics-endpoint-auth": "true", "metrics-cert-dir": "", "metrics-client-ca-file": "",
    "enable-grpc-stream-metrics": "false", "config-file": "", "config-text": "", "allow-experimental-plugins": "false",
}  # fmt: skip


def options(*argv: str) -> ServeOptions:
    return parse_serve(argv)[0]


def test_all_flags_of_llm_d_router_with_their_defaults() -> None:
    assert {flag.name: flag.default for flag in serve_flags() if not flag.ours} == UPSTREAM


def test_defaults_as_written_are_the_defaults() -> None:
    written = [f"--{flag.name}={flag.default}" for flag in serve_flags() if flag.default]
    assert options(*written) == options() == ServeOptions()


@pytest.mark.parametrize("argv", [["-v=4"], ["-v", "4"], ["-v4"], ["--v", "4"], ["--v=4"], ["-v=1", "--v=4"]])
def test_verbosity(argv: list[str]) -> None:
    assert options(*argv).v == 4
    assert options(*argv).verbosity == 4


@pytest.mark.parametrize(
    ("level", "verbosity"), [("debug", 4), ("info", 2), ("warn", 1), ("error", 0), ("panic", 0), ("5", 5)]
)
def test_the_zap_level_wins(level: str, verbosity: int) -> None:
    assert options("-v=3", f"--zap-log-level={level}").verbosity == verbosity


def test_the_log_format() -> None:
    assert options().log_format == "console"
    assert options("--zap-devel=false").log_format == "json"
    assert options("--zap-encoder", "json").log_format == "json"


@pytest.mark.parametrize("argv", [["--secure-serving=false"], ["--secure-serving=F"], ["--secure-serving", "0"]])
def test_booleans_off(argv: list[str]) -> None:
    assert options(*argv, "--health-checking") == ServeOptions(secure_serving=False, health_checking=True)


def test_values() -> None:
    made = options(
        "--drain-timeout=1m30s",
        "--grpc-max-recv-msg-size=16MiB",
        "--max-request-body-bytes=1Mi",
        "--endpoint-selector=app=vllm",
        "--endpoint-target-ports=8000,8001,8000",
        "--tls-cipher-suites=A, B",
        "--config-text={a: b}",
        "--scrape-cpu-budget=0.5",
        "--refresh-metrics-interval=200ms",
        "--transport",
        "grpcio",
    )
    assert made == ServeOptions(
        drain_timeout=90.0,
        grpc_max_recv_msg_size=16 * 2**20,
        max_request_body_bytes=2**20,
        endpoint_selector="app=vllm",
        endpoint_target_ports=(8000, 8001),
        tls_cipher_suites=("A", "B"),
        config_text="{a: b}",
        scrape_cpu_budget=0.5,
        refresh_metrics_interval=0.2,
        transport="grpcio",
    )
    assert dataclasses.asdict(options("--grpc-max-recv-msg-size="))["grpc_max_recv_msg_size"] == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--grpc-prt=1"], r"unknown flag --grpc-prt \(did you mean `grpc-port`\?\)"),
        (["--grpc-por"], "unknown flag --grpc-por"),
        (["-x"], "unknown flag -x"),
        (["serve"], "unexpected argument 'serve'"),
        (["--grpc-port"], "--grpc-port: expected one argument"),
        (["--grpc-port=70000"], "--grpc-port: expected a port from 0 to 65535, got '70000'"),
        (["--secure-serving=maybe"], "--secure-serving: expected true or false"),
        (["--drain-timeout=5"], "--drain-timeout: expected a duration"),
        (["--drain-timeout=-5s"], "--drain-timeout: expected a duration of at least 0"),
        (["--max-request-body-bytes=many"], "expected a quantity"),
        (["--max-request-body-bytes=-1"], "expected a size of at least 0"),
        (["--max-request-body-bytes=0"], "expected a size above 0"),
        (["--scrape-cpu-budget=0"], "expected a share of a core"),
        (["--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "at most 8 ports"),
        (["--transport=other"], "expected one of own, grpcio"),
        (["--tls-min-version=1.2"], "expected one of VersionTLS10"),
        (["--zap-log-level=loud"], "expected debug, info"),
        (["-v=high"], "-v/--v: expected a whole number such as 4, got 'high'"),
        (["--config-file=a", "--config-text=b"], "--config-file and --config-text are both given"),
        (["--pool-name=a", "--endpoint-selector=b"], "--pool-name and --endpoint-selector are both given"),
        (["--endpoint-selector=b"], "needs --endpoint-target-ports"),
        (["--endpoint-target-ports=1"], "needs --endpoint-selector"),
        (["--metrics-client-ca-file=a"], "needs --metrics-cert-dir"),
        (["--metrics-cert-dir=a", "--metrics-endpoint-auth=false"], "needs --metrics-client-ca-file or"),
        (["--tls-client-ca-file=a", "--secure-serving=false"], "needs --secure-serving"),
        (["--enable-cert-reload"], "needs --cert-path"),
        (["--grpc-port=9090"], "--grpc-port and --metrics-port are both 9090"),
    ],
)
def test_what_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(FlagError, match=said):
        parse_serve(argv)


@pytest.mark.parametrize("name", REMOVED)
def test_removed_flags_stop_the_start(name: str) -> None:
    for argv in ([f"--{name}=vllm:x"], [f"--{name}", "x"], [f"--{name}="]):
        with pytest.raises(FlagError, match=f"--{name} has been removed: set {REMOVED[name]}"):
            parse_serve(argv)


def test_flags_without_effect_are_said_when_they_are_changed() -> None:
    assert parse_serve(["--enable-pprof=true", "--pool-group=inference.networking.k8s.io"])[1] == ()
    warnings = parse_serve(["--enable-pprof=false", "--grpc-max-send-msg-size=1Mi", "--pool-name=p"])[1]
    assert sorted(warning.split(":")[0] for warning in warnings) == ["--enable-pprof", "--grpc-max-send-msg-size"]
    assert set(NOT_YET_EFFECTIVE) <= {flag.name for flag in serve_flags()}


def test_the_metrics_flags_of_older_routers_name_their_parameter() -> None:
    with pytest.raises(FlagError, match="`scheme` of the plugin metrics-data-source"):
        parse_serve(["--model-server-metrics-scheme", "https"])
    with pytest.raises(FlagError, match="`loraSpec` of the plugin core-metrics-extractor"):
        parse_serve(["--lora-info-metric="])


def test_cipher_suites_beside_tls_1_3_are_said_to_have_no_effect() -> None:
    suites = "--tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
    assert parse_serve([suites, "--tls-min-version=VersionTLS12"])[1] == ()
    (warning,) = parse_serve([suites, "--tls-min-version=VersionTLS13"])[1]
    assert warning.startswith("--tls-cipher-suites has no effect")


def test_the_refresh_interval_has_a_floor() -> None:
    made, warnings = parse_serve(["--refresh-metrics-interval=1ms"])
    assert made.refresh_metrics_interval == 0.05
    assert warnings == ("--refresh-metrics-interval is below 50ms: 50ms is used",)


def test_endpoints_come_from_somewhere() -> None:
    check_pool(options(), discovery=True)
    check_pool(options("--pool-name=p"), discovery=True)
    check_pool(options("--pool-name=p"), discovery=False)
    selected = options("--endpoint-selector=a", "--endpoint-target-ports=1")
    check_pool(selected, discovery=False)
    with pytest.raises(FlagError, match="nothing says where endpoints come from: give --pool-name"):
        check_pool(options(), discovery=False)
    with pytest.raises(FlagError, match="keep one"):
        check_pool(selected, discovery=True)
    with pytest.raises(FlagError, match="declarations-file"):
        check_pool(options("--pool-name=p", "--declarations-file=f"), discovery=False)


def test_help_has_them_all() -> None:
    text = serve_help()
    assert all(f"--{flag.name}" in text for flag in serve_flags())
    assert not any(f"--{name}" in text for name in REMOVED)
