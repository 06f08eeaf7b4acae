"""Videos of a pipeline behind the HTTP API, as measurements want them."""

from typing import Any

from filmstrip.client import Client, Complete, ErrorEvent
from tests.support.toyworld.videos import SIDE, Frames

TIMEOUT_S = 600.0
"""Of a silent connection: a large model may have to be loaded first."""


class UnfitVideo(Exception):
    """The server's answer is no whole video of the size that the detectors are made for."""


def served_video(client: Client, num_frames: int, **request: Any) -> Frames:
    """Generate, and download what was made, [F, 64, 64, 3].

    Args:
        client: of a running server.
        num_frames: to ask for.
        request: all other fields but `height` and `width`.

    Raises:
        FilmstripError: the server refuses, or its model fails.
        ClientError: it can't be reached.
        UnfitVideo: the video is not whole, or not of 64x64 pixels.
    """
    with client.generate(num_frames=num_frames, height=SIDE, width=SIDE, **request) as events:
        *_, last = events
    if isinstance(last, ErrorEvent):
        raise last.exception()
    if not isinstance(last, Complete):
        raise UnfitVideo("the generation was cancelled by someone else")
    video = client.download(last.output_path)
    expected = (num_frames, SIDE, SIDE, 3)
    if video.shape != expected:
        raise UnfitVideo(f"a video came back with shape {list(video.shape)}, not {list(expected)}")
    return video
