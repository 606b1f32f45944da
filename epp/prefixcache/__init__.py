"""Prefix caches of the model servers, as far as a picker can know them: block hashes and indexes."""
