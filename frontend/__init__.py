"""The HTTP server: HTTP and SSE for clients, one Triton call per chunk."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read when grpc is imported; by default it logs each process started
# gRPC would run its fork handlers in each process that is started, where they can crash before it runs its program.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
