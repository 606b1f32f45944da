"""Plugins that measure from inside a picker."""
