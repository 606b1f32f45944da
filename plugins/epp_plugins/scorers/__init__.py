"""Scorers say how good each candidate is."""
