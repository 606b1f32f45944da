"""Filters, scores, pick: profile after profile, over the candidates of one request. No I/O, no clock of its own."""
