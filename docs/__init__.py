"""Documentation, and examples that run."""
