"""Data sources: what is fetched from every endpoint."""
