"""A demonstration on a real clip: `python -m demo`."""
