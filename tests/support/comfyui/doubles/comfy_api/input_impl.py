"""Stands for ComfyUI's module: a video that is a file."""


class VideoFromFile:
    def __init__(self, file: str) -> None:
        self.file = file
