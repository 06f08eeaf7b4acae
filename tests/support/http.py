"""The HTTP client of tests and benchmarks: pooled connections to loopback, without a proxy, 60 seconds for everything.

An `httpx.get` makes a client and reads all certificate authorities for each request.
"""

import atexit

import httpx

TIMEOUT_S = 60.0

# The server closes idle connections after 5 seconds. Ours are given up long before, so that none breaks in use.
client = httpx.Client(
    timeout=TIMEOUT_S, trust_env=False, limits=httpx.Limits(max_connections=None, keepalive_expiry=1.0)
)
get, post, put, patch, delete = client.get, client.post, client.put, client.patch, client.delete
head, options, request, stream = client.head, client.options, client.request, client.stream
atexit.register(client.close)
