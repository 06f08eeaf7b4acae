"""A demonstration from a sentence and from a real clip: `python -m demo`."""
