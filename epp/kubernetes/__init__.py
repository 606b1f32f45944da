"""The pool from the Kubernetes API: watchers, leases and token reviews. Imported in Kubernetes mode only."""
