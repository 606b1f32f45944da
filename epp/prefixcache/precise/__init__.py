"""The exact prefix index: which blocks each server says it holds, in which tier."""
