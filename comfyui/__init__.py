"""ComfyUI nodes for a Filmstrip server. Nothing here touches the network when it is imported."""

from __future__ import annotations

from . import nodes_chunks, nodes_generate, nodes_server

__version__ = "0.1.0"

NODE_CLASS_MAPPINGS = {
    **nodes_server.NODE_CLASS_MAPPINGS,
    **nodes_chunks.NODE_CLASS_MAPPINGS,
    **nodes_generate.NODE_CLASS_MAPPINGS,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    **nodes_server.NODE_DISPLAY_NAME_MAPPINGS,
    **nodes_chunks.NODE_DISPLAY_NAME_MAPPINGS,
    **nodes_generate.NODE_DISPLAY_NAME_MAPPINGS,
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
