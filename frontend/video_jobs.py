"""What the server asks of the processes that encode and decode video files; without FFmpeg, which only they load."""

from dataclasses import dataclass

WORKER = f"{__package__}.video_worker"
MAX_DECODED_SIDE = 8192
"""Longest side of a frame of an uploaded video file, and of what it is scaled to."""


@dataclass(frozen=True)
class EncodeJob:
    """What to encode.

    Attributes:
        fd: number of the open file with the frames.
        height: of a frame.
        width: likewise.
        into: path of the file to write.
        growing_into: path of a fragmented MP4 that is written while the frames arrive; empty if there is none.
        format: mp4, webm, gif or png.
        fps: frames per second, as a fraction.
        crf: quality of mp4 and webm.
        scale: how many times to enlarge the frames.
        frame: index of the frame for a PNG; None is a contact sheet.
    """

    fd: int
    height: int
    width: int
    into: str
    growing_into: str
    format: str
    fps: str
    crf: int | None
    scale: int
    frame: int | None


@dataclass(frozen=True)
class DecodeJob:
    """What to decode.

    Attributes:
        path: path of the video file.
        start: in seconds, as a fraction; frames before it are dropped.
        end: likewise; empty is the end of the video.
        fps: frames per second, as a fraction; empty is the file's own rate.
        max_frames: most frames; None for no limit.
        height: of the result; None follows from the width, or is the video's own.
        width: likewise.
        fit: how a video of another shape fills height and width: `cover` or `contain`.
        limit_bytes: most bytes of frames.
    """

    path: str
    start: str
    end: str
    fps: str
    max_frames: int | None
    height: int | None
    width: int | None
    fit: str
    limit_bytes: int
