"""The HTTP client of tests and benchmarks: pooled connections to loopback, without a proxy, 60 seconds for everything.

An `httpx.get` makes a client and reads all certificate authorities for each request.
"""

import atexit

import httpx

TIMEOUT_S = 60.0

GENERATE = "/api/v1/generate"
CANCEL = "/api/v1/generate/cancel"
UPLOAD = "/api/v1/generate/upload"
UPLOAD_DATA = "/api/v1/generate/upload-data"
DOWNLOAD = "/api/v1/generate/download"
ASSETS = "/api/v1/assets"
LOAD = "/api/v1/pipeline/load"


def connect(base_url: str = "", timeout_s: float = TIMEOUT_S) -> httpx.Client:
    """A client with connections of its own.

    The server closes idle connections after 5 seconds. Ours are closed long before, so that none breaks in use.
    """
    limits = httpx.Limits(max_connections=None, keepalive_expiry=1.0)
    return httpx.Client(base_url=base_url, timeout=timeout_s, trust_env=False, limits=limits)


client = connect()
get, post, put, patch, delete = client.get, client.post, client.put, client.patch, client.delete
head, options, request, stream = client.head, client.options, client.request, client.stream
atexit.register(client.close)
