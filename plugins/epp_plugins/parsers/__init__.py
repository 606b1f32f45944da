"""Parsers: what a request body means, and the usage in its answer."""
