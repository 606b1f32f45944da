"""Endpoint discovery outside Kubernetes."""
