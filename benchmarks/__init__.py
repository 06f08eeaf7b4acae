"""Measurements against the machine's own limits, run as `python -m benchmarks`."""
