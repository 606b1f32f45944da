"""Producers: data that scorers and filters need, computed once per request."""
