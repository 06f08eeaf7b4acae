"""Stands for ComfyUI's module: the progress bar."""

import threading
from typing import Any


class ProgressBar:
    made: "list[ProgressBar]" = []

    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total = total
        self.node_id = node_id
        self.updates: list[tuple[int, int, Any]] = []
        self.made.append(self)

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        assert threading.current_thread() is threading.main_thread(), "ComfyUI knows the node by its thread"
        if total is not None:
            self.total = total
        self.updates.append((value, self.total, preview))
