"""What the server asks of the processes that encode and decode video files; without FFmpeg, which only they load."""

from dataclasses import dataclass

WORKER = f"{__package__}.video_worker"


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
