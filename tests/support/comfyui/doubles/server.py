"""Stands for ComfyUI's module: messages under a node."""

from typing import ClassVar


class PromptServer:
    instance: "ClassVar[PromptServer]"

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def send_progress_text(self, text: bytes | bytearray | str, node_id: str, sid: str | None = None) -> None:
        assert isinstance(text, str)
        assert node_id
        self.texts.append((node_id, text))


PromptServer.instance = PromptServer()
