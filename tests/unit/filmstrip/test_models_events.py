import json

import pytest

from filmstrip.errors import Busy, DiskFull, ModelError, UnexpectedAnswer
from filmstrip.models import Cancelled, Complete, ErrorEvent, Preview, Progress, parse_event
from filmstrip.wire import VideoShape

PROGRESS = {"chunk": 1, "total_chunks": 5, "frames": 12, "latency": 0.5, "fps": 24.0}
PREVIEW = {"chunk": 1, "frames": 12, "width": 256, "height": 142, "image": None}
COMPLETE = {"output_path": "out", "video_shape": [60, 4, 6, 3], "num_frames": 60, "num_chunks": 5, "chunk_size": 12}
CANCELLED = {"chunk": 2, "total_chunks": 5, "frames_completed": 24}
KEPT = {"output_path": "out", "video_shape": [24, 4, 6, 3]}
USED = {"seed": 2**64 - 1, "unused": ["noise_scale", "seed"]}
SHAPE = VideoShape(60, 4, 6, 3)


def test_events_are_read_and_keys_of_later_versions_passed_over(subtests: pytest.Subtests):
    cases = [
        ("progress", PROGRESS, Progress(1, 5, 12, 0.5, 24.0)),
        ("preview", PREVIEW, Preview(1, 12, 256, 142, None)),
        (
            "preview",
            PREVIEW | {"image": "data:image/webp;base64,"},
            Preview(1, 12, 256, 142, "data:image/webp;base64,"),
        ),
        ("complete", COMPLETE, Complete("out", SHAPE, 60, 5, 12)),
        ("complete", COMPLETE | USED, Complete("out", SHAPE, 60, 5, 12, 2**64 - 1, ("noise_scale", "seed"))),
        ("cancelled", CANCELLED, Cancelled(2, 5, 24)),
        ("cancelled", CANCELLED | USED, Cancelled(2, 5, 24, None, None, 2**64 - 1, ("noise_scale", "seed"))),
        ("cancelled", CANCELLED | KEPT, Cancelled(2, 5, 24, "out", VideoShape(24, 4, 6, 3))),
        ("complete", COMPLETE | {"seed": 7, "unused": ["seed"]}, Complete("out", SHAPE, 60, 5, 12, 7, ("seed",))),
        ("complete", COMPLETE | {"seed": 2**64 - 1, "unused": []}, Complete("out", SHAPE, 60, 5, 12, 2**64 - 1)),
        ("cancelled", CANCELLED | {"seed": 7, "unused": ["seed"]}, Cancelled(2, 5, 24, seed=7, unused=("seed",))),
        ("error", {"error": "no space", "code": "disk_full"}, ErrorEvent("no space", "disk_full")),
    ]
    for name, data, event in cases:
        with subtests.test(name=name):
            read = parse_event(name, json.dumps(data | {"new_in_version_9": True}))
            assert read == event
            assert type(read) is type(event)


def test_events_of_later_versions_are_passed_over():
    assert parse_event("from_the_future", "{}") is None


def test_damaged_events_are_refused(subtests: pytest.Subtests):
    cases = [
        ("progress", "{", "progress event: Invalid JSON"),
        ("progress", "[1]", "should be an object"),
        ("progress", json.dumps({"chunk": 1}), "total_chunks: Field required"),
        ("complete", json.dumps(COMPLETE | {"video_shape": [1, 2, 3]}), "shape"),
        ("complete", json.dumps(COMPLETE | {"video_shape": "60x4"}), "shape"),
        ("complete", json.dumps(COMPLETE | {"video_shape": [0, 4, 6, 3]}), "shape"),
        ("complete", json.dumps(COMPLETE | {"unused": "seed"}), "unused"),
        ("cancelled", json.dumps(CANCELLED | {"unused": [1]}), "unused"),
        ("error", json.dumps({"error": "x"}), "code"),
    ]
    for name, data, named in cases:
        with subtests.test(name=name), pytest.raises(UnexpectedAnswer, match=named):
            parse_event(name, data)


def test_an_error_event_as_an_exception(subtests: pytest.Subtests):
    cases = [("disk_full", DiskFull), ("busy", Busy), ("from_the_future", ModelError)]
    for code, kind in cases:
        with subtests.test(code=code):
            error = ErrorEvent("what happened", code).exception()
            assert type(error) is kind
            assert error.message == "what happened"
