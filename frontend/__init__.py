"""The Quart frontend: HTTP and SSE outside, one Triton call per chunk inside."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when grpc is imported; it tells of every process started
