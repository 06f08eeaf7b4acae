"""Nothing is made twice, nothing is uploaded in vain, and the node says what happened: against the real server."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from comfyui import generation
from comfyui.client import ServerClient
from comfyui.errors import FilmstripError
from comfyui.nodes_server import FilmstripServer
from tests.support.comfyui.host import Comfy, array_of, ramp
from tests.support.comfyui.nodes import chunk_spec, generate, generate_video, pipeline, schedule
from tests.support.cutting_proxy import cutting_proxy
from tests.support.server import Frontend, frontend_on

UPLOADS = ("POST /api/v1/generate/upload", "POST /api/v1/assets")


def num_uploads(server: Frontend) -> int:
    log = server.log()
    return sum(log.count(upload) for upload in UPLOADS)


def test_another_rate_name_or_patience_downloads_the_same_video_again(server: Frontend, comfy: Comfy):
    probe, before = pipeline(server), len(server.probe_entries())
    sent = comfy.tensor(ramp(12))
    first = generate_video(probe, images=sent, num_frames=12)
    made, uploads = len(server.probe_entries()), num_uploads(server)
    assert made > before
    again = generate_video(probe, images=sent, num_frames=12, fps=24.0, filename_prefix="other", wait_when_busy_s=5)
    assert len(server.probe_entries()) == made
    assert num_uploads(server) == uploads
    assert json.loads(again["result"][3])["held"] is True
    assert "kept by the server" in comfy.texts[-1]
    assert again["result"][1] != first["result"][1]
    generate_video(probe, images=comfy.tensor(ramp(12)[::-1].copy()), num_frames=12)
    assert len(server.probe_entries()) > made, "another input is another video"


def test_a_random_seed_makes_a_new_video_each_time(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    for _ in range(2):
        generate(pipeline(server), num_frames=9, seed=-1)
    assert len(server.probe_entries()) == before + 2


def test_stop_during_the_download_loses_nothing(server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    probe, before = pipeline(server), len(server.probe_entries())

    def stop(*_: object) -> None:
        raise comfy.interrupted

    with monkeypatch.context() as patch:
        patch.setattr(ServerClient, "download", stop)
        with pytest.raises(comfy.interrupted):
            generate(probe, num_frames=9)
    assert comfy.texts[-1] == "stopped"
    images, count, _ = generate(probe, num_frames=9)
    assert count == len(array_of(images)) == 9
    assert len(server.probe_entries()) == before + 1


def test_a_connection_that_breaks_is_taken_up_again(server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "RETRY_S", 0.05)
    before = len(server.probe_entries())
    with cutting_proxy(server.url, 3) as proxy:
        images, count, report = generate(pipeline(proxy.url), num_frames=45)
        assert proxy.num_cut == 3
    assert count == len(array_of(images)) == 45
    assert [chunk["chunk"] for chunk in report["chunks"]] == [1, 2, 3, 4], "each event once"
    assert len(server.probe_entries()) == before + 4
    assert any(text.endswith("; trying again") for text in comfy.texts)


def test_what_can_be_refused_is_refused_before_anything_is_uploaded(
    server: Frontend, comfy: Comfy, subtests: pytest.Subtests
):
    probe, uploads = pipeline(server), num_uploads(server)
    sent = {"images": comfy.tensor(ramp(24)), "vace_frames": comfy.tensor(ramp(24)), "num_frames": 24}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"lora_scales": "nobody: 1"}, "^LoRA strengths: .*nobody"),
        ({"height": 72}, "^height: 72"),
        ({"chunk_specs": chunk_spec(7, vace_masks=comfy.tensor(np.ones((1, 64, 96), np.float32)))}, "chunk 7"),
        ({"vace_frames": comfy.tensor(np.zeros((24, 80, 96, 3), np.float32)), "other_sizes": "refuse"},
         "^control frames: are 96x80, but the video is 96x64 .see other sizes"),
    ]  # fmt: skip
    for inputs, message in cases:
        with subtests.test(inputs=list(inputs)), pytest.raises(FilmstripError, match=message):
            generate(probe, **{**sent, **inputs})
    assert num_uploads(server) == uploads


def test_the_node_shows_why_it_failed_and_nothing_of_the_run_before(server: Frontend, comfy: Comfy):
    probe = pipeline(server)
    with pytest.raises(FilmstripError) as caught:
        generate(probe, height=72)
    assert comfy.texts[-1] == str(caught.value)
    shown = len(comfy.texts)
    generate(probe, num_frames=9)
    assert comfy.texts[shown] == "starting"
    assert str(caught.value) not in comfy.texts[shown:]
    assert len(comfy.texts[shown:]) == len(set(comfy.texts[shown:])), "nothing is said twice"


def test_the_server_node_checks_the_key(server: Frontend, comfy: Comfy, tmp_path: Path):
    with frontend_on(server, tmp_path, api_keys="studio:the-key-of-the-studio-0123456789") as frontend:
        with pytest.raises(FilmstripError) as caught:
            FilmstripServer().check(address=frontend.url, token="wrong", unique_id="3")
        assert caught.value.code == "unauthorized"
        assert comfy.server.PromptServer.instance.texts[-1] == ("3", str(caught.value))


def test_a_prompt_past_the_end_is_a_warning(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    specs = schedule("0: a cat\n1.2: a dog\n60: a fish", unit="second", fps=10.0)
    _, _, report = generate(pipeline(server), num_frames=33, chunk_specs=specs)
    texts = [entry["parameters"]["prompts"][0][0] for entry in server.probe_entries()[before:]]
    assert texts == ["a cat", "a dog", "a dog"]
    (warning,) = report["warnings"]
    assert "second 60 is past the end of the 33 frames" in warning
    assert warning in comfy.texts[-1]


def test_a_prompt_with_weights_reaches_the_model(server: Frontend, comfy: Comfy):
    before = len(server.probe_entries())
    generate(pipeline(server), prompt="30: a cat\n70: a dog", num_frames=9)
    assert server.probe_entries()[before]["parameters"]["prompts"] == [["a cat", 30], ["a dog", 70]]


def test_previews_are_shown_on_the_node(server: Frontend, comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(
        "comfyui.host.Display.preview", lambda _, done, total, image: shown.append((done, total, image))
    )
    generate(pipeline(server), prompt="!sleep 0.3", num_frames=33)
    assert [(done, total) for done, total, _ in shown] == [(1, 3), (2, 3), (3, 3)][: len(shown)]
    assert all(image[8:12] == b"WEBP" for _, _, image in shown)
    assert shown


def test_a_file_holds_the_sound_cut_at_its_end_and_the_workflow(server: Frontend, comfy: Comfy):
    tone = np.sin(np.arange(3 * 8000, dtype=np.float32) / 10)[None, None].repeat(2, 1)
    graph = {"1": {"class_type": "FilmstripServer", "inputs": {"token": "the-key"}}}
    answer = generate_video(
        pipeline(server), num_frames=12, fps=12.0, filename_prefix="%date:yyyy%/x",
        audio={"waveform": comfy.tensor(tone), "sample_rate": 8000},
        graph=graph, extra_pnginfo={"workflow": {"nodes": []}},
    )  # fmt: skip
    path = Path(answer["result"][1])
    assert path.parent.name.isdecimal()
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}
        assert "the-key" not in container.metadata["prompt"]
        (sound,) = container.streams.audio
        assert (sound.rate, sound.channels) == (8000, 2)
        num_samples = sum(frame.samples for frame in container.decode(sound))
    assert num_samples == pytest.approx(8000, abs=2 * 1024)


def test_images_and_video_exclude_each_other(server: Frontend, comfy: Comfy):
    with pytest.raises(FilmstripError, match="images and video are both connected"):
        generate(pipeline(server), images=comfy.tensor(ramp(2)), video=object())


@pytest.mark.parametrize("size", [(32, 48), (200, 100)])
def test_inputs_of_any_size_are_fitted(server: Frontend, comfy: Comfy, size: tuple[int, int]):
    before = len(server.probe_entries())
    image = comfy.tensor(ramp(1, *size))
    specs = chunk_spec(0, first_frame_image=image, vace_masks=comfy.tensor(np.ones((1, *size), np.float32)))
    generate(pipeline(server), num_frames=12, vace_frames=comfy.tensor(ramp(12, *size)), chunk_specs=specs)
    (entry,) = server.probe_entries()[before:]
    assert entry["tensors"]["vace_frames"]["shape"] == [1, 3, 12, 64, 96]
    assert entry["tensors"]["vace_masks"]["shape"] == [1, 1, 1, 64, 96]


def test_all_seeds_of_comfyui_are_taken(server: Frontend, comfy: Comfy):
    _, count, report = generate(pipeline(server), seed=2**64 - 1, num_frames=9)
    assert count == 9
    assert report["request"]["seed"] == 2**64 - 1
