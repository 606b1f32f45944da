"""Saturation detectors say how full the pool is."""
