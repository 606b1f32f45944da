"""Options of a simulated server: the names of llm-d-inference-sim and vLLM, as flags, in the environment or in YAML.

Precedence: command line, then environment (`SIM_MODEL`, `PYTHONHASHSEED`, `POD_IP`,
`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`), then `--config` file, then default. Durations are Go strings (`100ms`, `750us`,
`1.5s`); plain numbers are milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from epp.config.duration import Duration
from epp.config.errors import did_you_mean
from epp_simulator.event_config import KVEventsConfig
from epp_simulator.kv_events import RELEASES, Group

FAILURES = ("rate_limit", "invalid_api_key", "context_length", "server_error", "invalid_request", "model_not_found")


def _option(default: Any, text: str, kind: str = "") -> Any:
    return field(default=default, metadata={"help": text, "kind": kind})


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Field names with `-` for `_` are the flags and the YAML keys. Durations are seconds here."""

    port: int = _option(8000, "first port; instance i listens on port+i")
    host: str = _option("127.0.0.1", "address to listen on")
    instances: int = _option(1, "servers in this process, on consecutive ports")
    model: str = _option("", "model name (required)")
    served_model_name: tuple[str, ...] = _option((), "names the model answers to; the first is echoed", "list")
    lora_modules: tuple[str, ...] = _option((), "adapter names, or JSON objects with a `name`", "lora")
    max_loras: int = _option(1, "adapters that can run at once")
    max_model_len: int = _option(1024, "longest prompt plus answer, in tokens")
    max_num_seqs: int = _option(5, "requests in the batch; the rest wait")
    max_waiting_queue_length: int = _option(1000, "waiting requests beyond which 429 is answered")
    mode: str = _option("random", "random: words from a list; echo: the prompt back")
    seed: int = _option(0, "seed of lengths, words, jitter and failures")
    startup_duration: float = _option(0.0, "time for which /health answers 503", "duration")
    enable_request_id_headers: bool = _option(False, "x-request-id on responses")
    latency_calculator: str = _option("", "constant, per-token, or empty: constant when a TTFT is given")
    time_to_first_token: float = _option(0.0, "prefill time (constant)", "duration")
    time_to_first_token_std_dev: float = _option(0.0, "its standard deviation", "duration")
    inter_token_latency: float = _option(0.0, "time between tokens", "duration")
    inter_token_latency_std_dev: float = _option(0.0, "its standard deviation", "duration")
    prefill_overhead: float = _option(0.0, "prefill time independent of length (per-token)", "duration")
    prefill_time_per_token: float = _option(0.0, "prefill time per uncached token (per-token)", "duration")
    prefill_time_std_dev: float = _option(0.0, "its standard deviation", "duration")
    kv_cache_transfer_latency: float = _option(0.0, "time to fetch what another server read (constant)", "duration")
    kv_cache_transfer_latency_std_dev: float = _option(0.0, "its standard deviation", "duration")
    kv_cache_transfer_time_per_token: float = _option(0.0, "the same per token (per-token)", "duration")
    kv_cache_transfer_time_std_dev: float = _option(0.0, "its standard deviation", "duration")
    time_factor_under_load: float = _option(1.0, "how much slower a full batch is (>= 1)")
    enable_kvcache: bool = _option(False, "keep prefix blocks: reuse, pinning, eviction")
    kv_cache_size: int = _option(1024, "blocks of the KV cache; as in vLLM one of them is never used")
    block_size: int = _option(16, "tokens per block (8, 16, 32, 64, 128)")
    hash_seed: str = _option("", "seed of the block hashes")
    kv_cpu_cache_size: int = _option(0, "blocks of a CPU tier behind the KV cache")
    kv_onload_time_per_token: float = _option(0.0, "prefill time per token that comes from the CPU tier", "duration")
    kv_cache_groups: tuple[str, ...] = _option(
        ("full_attention",), "KV cache groups in order: full_attention once, sliding_window:TOKENS", "list"
    )
    kv_events_config: str = _option("", "JSON, as vLLM: where to publish KV cache events", "json")
    kv_events_schema: str = _option("0.32", "release of vLLM whose event format is used: " + ", ".join(RELEASES))
    kv_events_int_hashes: bool = _option(True, "hashes in events are 64-bit numbers, not digests")
    kv_events_tagged_extra_keys: bool = _option(False, "extra keys in events as pairs of name and value")
    zmq_endpoint: str = _option(
        "", "publish events here, with the topic kv@HOST:PORT@MODEL; short for --kv-events-config"
    )
    kv_events_replay_endpoint: str = _option("", "answer for missed events here; with --zmq-endpoint")
    kv_events_replay_queue_size: int = _option(1024, "batches kept for replay; with --zmq-endpoint")
    advertise_host: str = _option("", "this server's address in topics and /kv_event_sources; default: --host")
    data_parallel_size: int = _option(1, "engines per server, each with a KV cache and event ports of its own")
    data_parallel_external_lb: bool = _option(False, "each engine has an HTTP port of its own: port + rank")
    pd_sidecar: bool = _option(False, "have prompts read by the server that x-prefiller-host-port names")
    default_embedding_dimensions: int = _option(384, "length of embeddings")
    ssl_certfile: str = _option("", "serve HTTPS with this certificate chain (PEM)")
    ssl_keyfile: str = _option("", "its private key (PEM)")
    self_signed_certs: bool = _option(False, "serve HTTPS with a certificate made at start")
    failure_injection_rate: int = _option(0, "percent of requests that fail")
    failure_types: tuple[str, ...] = _option((), "which failures: " + ", ".join(FAILURES), "list")
    fake_metrics: str = _option("", "JSON: values to report instead of the real ones", "json")
    max_request_body_size_mb: int = _option(4, "largest body; more is answered 413")

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is required: the name that clients ask for (or set SIM_MODEL)")
        if self.mode not in ("random", "echo"):
            raise ValueError(f"--mode {self.mode!r}: use random or echo")
        if self.latency_calculator not in ("", "constant", "per-token"):
            raise ValueError(f"--latency-calculator {self.latency_calculator!r}: use constant or per-token")
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ValueError(f"--block-size {self.block_size}: use 8, 16, 32, 64 or 128")
        if not 0 <= self.failure_injection_rate <= 100:
            raise ValueError(f"--failure-injection-rate {self.failure_injection_rate}: a percentage, 0 to 100")
        if self.time_factor_under_load < 1.0:
            raise ValueError(f"--time-factor-under-load {self.time_factor_under_load}: 1.0 or more")
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: 1 or more")
        listening = self.instances * (self.data_parallel_size if self.data_parallel_external_lb else 1)
        if not 0 <= self.port <= 65_536 - listening:
            raise ValueError(f"--port {self.port}: {listening} in a row from there must lie between 0 and 65535")
        if self.kv_cache_size < 2:
            raise ValueError("--kv-cache-size 1: 2 or more, one block is never used")
        if self.kv_events_schema not in RELEASES:
            raise ValueError(f"--kv-events-schema {self.kv_events_schema!r}: known are {', '.join(RELEASES)}")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ValueError("--ssl-certfile and --ssl-keyfile go together")
        if self.zmq_endpoint and self.kv_events_config:
            raise ValueError("--zmq-endpoint and --kv-events-config say the same: give one of them")
        if self.events.publishes and not self.enable_kvcache:
            raise ValueError("KV events come from the KV cache: give --enable-kvcache, too")
        if [group.window for group in self.groups].count(None) != 1:
            raise ValueError(
                f"--kv-cache-groups {' '.join(self.kv_cache_groups)}: full_attention once, not more or less"
            )
        unknown = set(self.failure_types) - set(FAILURES)
        if unknown:
            raise ValueError(f"--failure-types {', '.join(sorted(unknown))}: known are {', '.join(FAILURES)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the base model."""
        return self.served_model_name or (self.model,)

    @property
    def tls(self) -> bool:
        """Serve HTTPS."""
        return bool(self.ssl_certfile) or self.self_signed_certs

    @property
    def events(self) -> KVEventsConfig:
        """Where KV events go. ValueError when that is malformed."""
        try:
            if self.kv_events_config:
                return KVEventsConfig.parse(self.kv_events_config)
            if not self.zmq_endpoint:
                return KVEventsConfig()
            short = {
                "enable_kv_cache_events": True,
                "endpoint": self.zmq_endpoint,
                "replay_endpoint": self.kv_events_replay_endpoint or None,
                "buffer_steps": self.kv_events_replay_queue_size,
                "topic": "kv@{host}:{port}@{model}",
            }
            return KVEventsConfig.parse(json.dumps(short))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{'--kv-events-config' if self.kv_events_config else '--zmq-endpoint'}: {error}"
            ) from error

    @property
    def groups(self) -> tuple[Group, ...]:
        """KV cache groups, numbered. ValueError for a kind that is not simulated."""
        groups: list[Group] = []
        for index, text in enumerate(self.kv_cache_groups):
            kind, _, window = text.partition(":")
            if kind == "full_attention" and not window:
                groups.append(Group(index))
            elif kind == "sliding_window" and window.isdecimal() and int(window):
                groups.append(Group(index, kind, int(window)))
            else:
                raise ValueError(f"--kv-cache-groups {text!r}: use full_attention or sliding_window:TOKENS")
        return tuple(groups)

    @property
    def fakes(self) -> dict[str, Any]:
        """Fake metrics, parsed."""
        return dict(json.loads(self.fake_metrics)) if self.fake_metrics else {}


_POSITIVE = (
    "max_num_seqs",
    "max_model_len",
    "instances",
    "max_loras",
    "data_parallel_size",
    "default_embedding_dimensions",
    "kv_events_replay_queue_size",
)

# Accepted so that command lines of vLLM and llm-d-inference-sim work; they have no meaning here.
_IGNORED = (
    "mm-processor-kwargs",
    "ec-transfer-config",
    "tensor-parallel-size",
    "max-cpu-loras",
    "event-batch-size",  # a step is a batch, as in vLLM
    "fake-metrics-refresh-interval",  # they are computed when the page is read
    "render-url",  # the tokenizer is built in
    "render-timeout",
    "mm-render-timeout",
)
_IGNORED_SWITCHES = (
    "enforce-eager",
    "enable-prefix-caching",
    "force-dummy-tokenizer",
    "log-http",
    "enable-prompt-tokens-details",
    "enable-scale-out",
)

_ENVIRONMENT = {
    "SIM_MODEL": "model",
    "PYTHONHASHSEED": "hash_seed",
    "POD_IP": "advertise_host",
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "kv_events_int_hashes",
}
_MAP_FORMAT = "use_vllm_map_event_format"  # llm-d-inference-sim's choice between two formats


def parse(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> SimOptions:
    """Options from a command line. Raises ValueError for a bad value or an unknown YAML key."""
    parser = _Parser(prog="epp sim", description="Simulated vLLM servers.", allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file with the same names as the flags")
    for option in fields(SimOptions):
        flag = "--" + option.name.replace("_", "-")
        kind = option.metadata["kind"]
        if isinstance(option.default, bool):
            parser.add_argument(flag, nargs="?", const="true", default=None, help=option.metadata["help"])
        else:
            nargs = "+" if kind in ("list", "lora") else None
            parser.add_argument(flag, nargs=nargs, default=None, help=f"{option.metadata['help']} ({option.default})")
    for name in _IGNORED:
        parser.add_argument("--" + name, default=None, help=argparse.SUPPRESS)
    for name in _IGNORED_SWITCHES:
        parser.add_argument("--" + name, nargs="?", default=None, help=argparse.SUPPRESS)
    parser.add_argument(
        "--use-vllm-map-event-format", nargs="?", const="true", help="true: --kv-events-schema 0.32, false: 0.15"
    )
    parser.add_argument("--num-gpu-blocks-override", dest="kv_cache_size", help="vLLM's name of --kv-cache-size")
    namespace, rest = parser.parse_known_args(argv)
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}{_meant(rest[0])}")
    given = vars(namespace)
    values = from_file(given["config"]) if given["config"] else {}
    for variable, name in _ENVIRONMENT.items():
        if environment.get(variable):
            values[name] = _convert(name, environment[variable])
    if given[_MAP_FORMAT] is not None:
        values["kv_events_schema"] = _format(given[_MAP_FORMAT])
    for option in fields(SimOptions):
        if given[option.name] is not None:
            values[option.name] = _convert(option.name, given[option.name])
    return SimOptions(**values)


class _Parser(argparse.ArgumentParser):
    """One line, as for every other bad option, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _meant(word: str) -> str:
    name = word.lstrip("-").partition("=")[0].replace("_", "-")
    hint = did_you_mean(name, [option.name.replace("_", "-") for option in fields(SimOptions)])
    return f" ({hint})" if hint else ""


def from_file(path: Path) -> dict[str, Any]:
    """Values of a YAML file, by field name."""
    try:
        loaded = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config: cannot read {path}: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"--config: {path}: expected `flag: value` lines, got {type(loaded).__name__}")
    known = {option.name for option in fields(SimOptions)}
    ignored = {name.replace("-", "_") for name in (*_IGNORED, *_IGNORED_SWITCHES)}
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name in known:
            values[name] = _convert(name, value)
        elif name == _MAP_FORMAT:
            values.setdefault("kv_events_schema", _format(value))
        elif name not in ignored:
            raise ValueError(f"{path}: unknown key {key!r}{_meant(str(key))}")
    return values


def _convert(name: str, value: Any) -> Any:
    option = next(option for option in fields(SimOptions) if option.name == name)
    kind = option.metadata["kind"]
    try:
        if kind == "duration":
            return duration(value)
        if kind == "list":
            return _words(value)
        if kind == "lora":
            return tuple(json.loads(word)["name"] if word.startswith("{") else word for word in _words(value))
        if kind == "json":
            return value if isinstance(value, str) else json.dumps(value)
        if isinstance(option.default, bool):
            return _truth(value)
        return (
            float(value)
            if isinstance(option.default, float)
            else int(value)
            if isinstance(option.default, int)
            else str(value)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--{name.replace('_', '-')} {value!r}: {error}") from error


def _truth(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes")


def _format(maps: Any) -> str:
    return "0.32" if _truth(maps) else "0.15"


def _words(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    words: list[str] = []
    for item in items:
        if isinstance(item, dict):
            words.append(json.dumps(item))
        elif str(item).startswith("{"):
            words.append(str(item))
        else:
            words += [word for word in str(item).split(",") if word]
    return tuple(words)


def duration(value: Any) -> float:
    """Seconds from a Go duration (`1m30s`, `250us`) or from a number of milliseconds."""
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text) / 1000
    return float(Duration.parse(text))
