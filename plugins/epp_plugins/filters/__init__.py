"""Filters keep the endpoints that may serve a request."""
