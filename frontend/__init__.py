"""The Quart frontend: HTTP and SSE outside, one Triton call per chunk inside."""
