"""How long a simulated server takes: llm-d-inference-sim's formulas.

    constant  : prefill = time-to-first-token
    per-token : prefill = prefill-overhead + uncached tokens * prefill-time-per-token
    transfer  : kv-cache-transfer-latency, or tokens * kv-cache-transfer-time-per-token, of what another server read
    factor    : 1 + (time-factor-under-load - 1) * (running - 1) / (max-num-seqs - 1), on prefill and token gaps
    jitter    : normal, standard deviation at most 30 % of the mean, clamped to 70 % around it

Unlike there, times are not rounded to whole milliseconds.
"""

from __future__ import annotations

import random

from epp_simulator.options import SimOptions


class LatencyModel:
    """Samples durations in seconds."""

    def __init__(self, options: SimOptions, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        constant = options.time_to_first_token or options.time_to_first_token_std_dev
        calculator = options.latency_calculator or ("constant" if constant else "per-token")
        self._per_token = calculator == "per-token"
        constant = options.kv_cache_transfer_latency or options.kv_cache_transfer_latency_std_dev
        calculator = options.latency_calculator or ("constant" if constant else "per-token")
        self._transfer_per_token = calculator == "per-token"

    def prefill(self, prompt_tokens: int, cached_tokens: int, running: int, loaded_tokens: int = 0) -> float:
        """Time until the first token, without queueing. `loaded_tokens` of the cached ones come from the CPU tier."""
        options = self._options
        if self._per_token:
            mean = options.prefill_overhead + (prompt_tokens - cached_tokens) * options.prefill_time_per_token
            deviation = options.prefill_time_std_dev
        else:
            mean, deviation = options.time_to_first_token, options.time_to_first_token_std_dev
        loading = loaded_tokens * options.kv_onload_time_per_token
        return self._jitter(mean, deviation) * self.load_factor(running) + loading

    def transfer(self, tokens: int) -> float:
        """Time to fetch the KV cache of so many tokens from the server that read them. Load does not matter."""
        options = self._options
        if self._transfer_per_token:
            return self._jitter(
                tokens * options.kv_cache_transfer_time_per_token, options.kv_cache_transfer_time_std_dev
            )
        return self._jitter(options.kv_cache_transfer_latency, options.kv_cache_transfer_latency_std_dev)

    def token_gap(self, running: int) -> float:
        """Time between two tokens."""
        options = self._options
        gap = self._jitter(options.inter_token_latency, options.inter_token_latency_std_dev)
        return gap * self.load_factor(running)

    def load_factor(self, running: int) -> float:
        """1.0 for a lone request, `time-factor-under-load` for a full batch."""
        seats = self._options.max_num_seqs
        if seats <= 1:
            return 1.0
        return 1.0 + (self._options.time_factor_under_load - 1.0) * (max(running, 1) - 1) / (seats - 1)

    def _jitter(self, mean: float, deviation: float) -> float:
        if deviation <= 0 or mean <= 0:
            return mean
        sample = self._rng.gauss(mean, min(deviation, 0.3 * mean))
        return min(max(sample, 0.3 * mean), 1.7 * mean)
