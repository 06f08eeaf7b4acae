"""The toy world of the small model: scenes drawn on a plain background, and rules that say what a video shows."""
