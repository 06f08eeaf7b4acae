"""Video files: reads all that FFmpeg reads; writes MP4, MOV, MKV, WebM, GIF and PNG; one frame in memory at a time."""

from filmstrip.video.read import VideoFileError, VideoInfo, count_frames, probe, read_frames
from filmstrip.video.write import Output, Written, check_output, open_mp4, open_output, write_video

__all__ = [
    "Output",
    "VideoFileError",
    "VideoInfo",
    "Written",
    "check_output",
    "count_frames",
    "open_mp4",
    "open_output",
    "probe",
    "read_frames",
    "write_video",
]
