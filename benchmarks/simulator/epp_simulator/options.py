"""Options of a simulated server: the names of llm-d-inference-sim, on the command line, in the environment or in YAML.

Precedence: command line, then environment (`SIM_MODEL`), then `--config` file, then default. Durations are Go strings
(`100ms`, `750us`, `1.5s`); plain numbers are milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from epp.config.duration import Duration

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
    time_factor_under_load: float = _option(1.0, "how much slower a full batch is (>= 1)")
    enable_kvcache: bool = _option(False, "keep prefix blocks: reuse, pinning, eviction")
    kv_cache_size: int = _option(1024, "blocks of the KV cache")
    block_size: int = _option(16, "tokens per block (8, 16, 32, 64, 128)")
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
        if min(self.max_num_seqs, self.kv_cache_size, self.max_model_len, self.instances, self.max_loras) < 1:
            raise ValueError("max-num-seqs, kv-cache-size, max-model-len, instances and max-loras must be at least 1")
        unknown = set(self.failure_types) - set(FAILURES)
        if unknown:
            raise ValueError(f"--failure-types {', '.join(sorted(unknown))}: known are {', '.join(FAILURES)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the base model."""
        return self.served_model_name or (self.model,)

    @property
    def fakes(self) -> dict[str, Any]:
        """Fake metrics, parsed."""
        return dict(json.loads(self.fake_metrics)) if self.fake_metrics else {}


# Accepted so that vLLM's command lines work; they have no meaning here.
_IGNORED = ("mm-processor-kwargs", "ec-transfer-config", "tensor-parallel-size", "max-cpu-loras", "hash-seed")
_IGNORED_SWITCHES = ("enforce-eager", "enable-prefix-caching", "force-dummy-tokenizer")


def parse(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> SimOptions:
    """Options from a command line. Raises ValueError for a bad value or an unknown YAML key."""
    parser = argparse.ArgumentParser(prog="epp sim", description="Simulated vLLM servers.", allow_abbrev=False)
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
    given = vars(parser.parse_args(argv))
    values = from_file(given["config"]) if given["config"] else {}
    if environment.get("SIM_MODEL"):
        values["model"] = environment["SIM_MODEL"]
    for option in fields(SimOptions):
        if given[option.name] is not None:
            values[option.name] = _convert(option.name, given[option.name])
    return SimOptions(**values)


def from_file(path: Path) -> dict[str, Any]:
    """Values of a YAML file, by field name."""
    loaded = yaml.safe_load(path.read_text()) or {}
    known = {option.name for option in fields(SimOptions)}
    ignored = {name.replace("-", "_") for name in (*_IGNORED, *_IGNORED_SWITCHES)}
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name in known:
            values[name] = _convert(name, value)
        elif name not in ignored:
            raise ValueError(f"{path}: unknown key {key!r}")
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
            return str(value).lower() in ("true", "1", "yes")
        return (
            float(value)
            if isinstance(option.default, float)
            else int(value)
            if isinstance(option.default, int)
            else str(value)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--{name.replace('_', '-')} {value!r}: {error}") from error


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
