"""A vLLM stand-in: the same HTTP interface, metrics and timing, without a model."""
