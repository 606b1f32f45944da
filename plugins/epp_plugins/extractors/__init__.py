"""Extractors: what is read from the pages that data sources fetch."""
