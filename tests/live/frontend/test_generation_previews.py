"""Previews of generations: asked for, sent, kept, and without effect on anything else."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support import http
from tests.support.generations import Generations
from tests.support.probe_video import probe_video
from tests.support.recovery import PROBE
from tests.support.server import Frames, Frontend, frontend_on
from tests.support.sse import ServerSentEvent

EACH = PROBE | {"previews": {"every": 1}}


@pytest.fixture
def own(server: Frontend) -> Generations:
    return Generations(server)


def names(events: list[ServerSentEvent]) -> list[str]:
    return [event.name for event in events]


def shown(event: ServerSentEvent) -> Frames:
    head, _, data = event.data["image"].partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.size == (event.data["width"], event.data["height"])
        return np.asarray(image.convert("RGB"))


def test_previews_are_numbered_by_the_request_alone(own: Generations) -> None:
    try:
        own.start("each", EACH | {"seed": 3})
        own.start("second", PROBE | {"previews": {"every": 2, "width": 48}})
        events = own.events("each")
        assert names(events) == ["progress", "preview"] * 3 + ["complete"]
        assert [event.id for event in events] == list(range(1, 8))
        keys = ["chunk", "frames", "width", "height", "image"]
        assert [list(event.data) for event in events[1::2]] == [keys] * 3
        assert [(event.data["chunk"], event.data["frames"]) for event in events[1::2]] == [(1, 9), (2, 21), (3, 33)]
        frame = probe_video(33, seed=3)[-1]  # a pattern with sharp edges
        assert np.abs(shown(events[5]).astype(int) - frame).mean() < 12
        assert own.events("each", after=5) == events[5:]
        second = own.events("second")
        assert names(second) == ["progress", "progress", "preview", "progress", "complete"]
        assert (second[2].data["width"], second[2].data["height"]) == (48, 32)
    finally:
        assert (own.delete("each"), own.delete("second")) == (204, 204)


def test_a_preview_comes_while_the_next_chunk_is_made(own: Generations) -> None:
    specs = [{"chunk": 1, "text": "!sleep 60"}]
    with own.stream("PUT", "/long", json=EACH | {"chunk_specs": specs}) as events:
        assert [next(events).name, (preview := next(events)).name] == ["progress", "preview"]
        assert np.abs(shown(preview).astype(int) - probe_video(9)[-1]).mean() < 12
        assert own.get("long")["state"] == "running"
        own.delete("long")


def test_previews_are_no_part_of_what_is_generated(own: Generations, server: Frontend) -> None:
    try:
        own.start("plain", PROBE | {"num_frames": 9})
        answer = own.put("plain", EACH | {"num_frames": 9})
        assert answer.status_code == 200
        assert "previews" not in answer.json()["request"]
        assert names(own.events("plain")) == ["progress", "complete"]  # the first ones hold
        assert own.post(EACH | {"num_frames": 9}, **{"Idempotency-Key": "k"}).status_code == 202
        again = own.post(PROBE | {"num_frames": 9}, **{"Idempotency-Key": "k"})
        assert again.status_code == 200
        own.wait_ended(again.json()["id"])
        assert own.delete(again.json()["id"]) == 204
        dry = http.post(f"{server.url}/api/v1/generations", params={"dry_run": 1}, json=EACH)
        assert dry.status_code == 200
    finally:
        own.delete("plain")


def test_bad_previews_are_refused(own: Generations, subtests: pytest.Subtests) -> None:
    for previews, field in (
        ({"every": 0}, "every"),
        ({"width": 64}, "every"),
        ({"every": 1, "width": 15}, "width"),
        ({"every": 1, "width": 513}, "width"),
        ({"every": 1, "height": 64}, "height"),
        (1, None),
    ):
        with subtests.test(previews=previews):
            answer: httpx.Response = own.put("bad", PROBE | {"previews": previews})
            assert answer.status_code == 422
            name = f"previews.{field}" if field else "previews"
            assert answer.json()["error"]["field"] == name


def test_a_cancelled_generation_keeps_its_previews(own: Generations) -> None:
    request = EACH | {"num_frames": 105, "chunk_specs": [{"chunk": 1, "text": "!sleep 1"}]}
    try:
        with own.stream("PUT", "/cancelled", json=request) as events:
            next(events)
            own.cancel("cancelled")
            rest = list(events)
        assert names(rest)[-2:] == ["preview", "cancelled"]
        assert rest[-2].data["image"] is not None
    finally:
        assert own.delete("cancelled") == 204


def test_previews_survive_a_restart(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path) as frontend:
        own = Generations(frontend)
        own.start("kept", EACH)
        own.wait_ended("kept")
        events = own.events("kept")
    with frontend_on(server, tmp_path) as frontend:
        assert Generations(frontend).events("kept") == events
