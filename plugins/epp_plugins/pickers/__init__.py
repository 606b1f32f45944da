"""Pickers choose among the scored candidates."""
