"""From a checkpoint to modules that can be exported."""
