"""Prompts as token ids: estimated, asked from a render server, or made here. What `token-producer` is built from."""
