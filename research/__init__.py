"""Trains the small model on videos drawn here, run as `python -m research`."""
