"""Filmstrip: whole videos from one request, generated chunk by chunk on NVIDIA Triton."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmstrip.client import AsyncClient, Client

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    # Imported on first use: the models in Triton import this package too, and need no HTTP client.
    if name in ("AsyncClient", "Client"):
        from filmstrip import client  # noqa: PLC0415

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
