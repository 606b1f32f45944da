"""Deciders say whether a stage of a request (its prompt, its media) gets a server of its own."""
