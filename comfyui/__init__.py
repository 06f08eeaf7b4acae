"""ComfyUI nodes for a Filmstrip server. Nothing here touches the network when it is imported.

The ids of the nodes, which are the keys of NODE_CLASS_MAPPINGS, never change: saved workflows name them.
"""

from __future__ import annotations

from . import nodes_chunks, nodes_example, nodes_generate, nodes_server, routes

__version__ = "0.1.0"

_MODULES = (nodes_server, nodes_chunks, nodes_generate, nodes_example)

NODE_CLASS_MAPPINGS = {name: node for module in _MODULES for name, node in module.NODE_CLASS_MAPPINGS.items()}
NODE_DISPLAY_NAME_MAPPINGS = {
    name: title for module in _MODULES for name, title in module.NODE_DISPLAY_NAME_MAPPINGS.items()
}

WEB_DIRECTORY = "./web"

routes.register()

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
