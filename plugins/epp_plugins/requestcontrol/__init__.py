"""Plugins on a request's way that neither produce data for scheduling nor choose: identities, reports."""
