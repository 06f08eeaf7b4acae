"""The HTTP server: HTTP and SSE for clients, one Triton call per chunk."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when grpc is imported; by default it logs each process started
