"""What nodes make of their inputs: places of prompts, ramps, sizes, names, dates, metadata."""

import datetime
import json
from types import SimpleNamespace

import numpy as np
import pytest

from comfyui import host, widgets
from comfyui.chunk_specs import ChunkSpec, Lora, ScheduledPrompt, place_prompts, with_loras, with_references
from comfyui.errors import FilmstripError
from comfyui.nodes_chunks import FilmstripLora, FilmstripPromptSchedule
from comfyui.nodes_example import EXAMPLES, FilmstripExample
from tests.support.comfyui.host import Comfy, array_of

STARTS = (0, 9, 21)
FRAMES = 33


def prompts(unit: str, *starts: float, fps: float = 10) -> tuple[ScheduledPrompt, ...]:
    return tuple(ScheduledPrompt(start, unit, fps, f"p{start:g}") for start in starts)


@pytest.mark.parametrize(
    ("specs", "chunks", "warning"),
    [
        (prompts("chunk", 0, 2), [0, 2], None),
        (prompts("chunk", 0, 3), [0], "the prompt at chunk 3 is past the end of the 3 chunks"),
        (prompts("frame", 0, 9, 20, 21), [0, 1, 1, 2], "the prompts at frame 20 and 9 are both in chunk 1"),
        (prompts("frame", 8, 32, 33), [0, 2], "frame 33 is past the end of the 33 frames"),
        (prompts("second", 0, 0.9, 2.1), [0, 1, 2], None),
        (prompts("second", 3.3), [], "second 3.3 is past the end"),
    ],
)
def test_a_prompt_is_placed_in_its_chunk(specs: tuple[ScheduledPrompt, ...], chunks: list[int], warning: str | None):
    placed, warnings = place_prompts(specs, STARTS, FRAMES)
    assert [spec.chunk for spec in placed] == chunks
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def test_a_chunk_spec_in_the_chain_keeps_its_place():
    own = ChunkSpec(1, {"text": "own"})
    placed, _ = place_prompts((*prompts("chunk", 1), own), STARTS, FRAMES)
    assert [spec.fields["text"] for spec in placed] == ["p1", "own"]


def test_schedules_of_other_packs_and_of_seconds_are_read():
    assert widgets.parse_schedule('"0": "a cat",\n"24" : "a dog, 3:2"\n') == {0: "a cat", 24: "a dog, 3:2"}
    assert widgets.parse_schedule("1.5: a cat", whole=False) == {1.5: "a cat"}
    assert FilmstripPromptSchedule.VALIDATE_INPUTS(schedule="1.5: a", unit="second") is True
    assert "line 1" in str(FilmstripPromptSchedule.VALIDATE_INPUTS(schedule="1.5: a", unit="frame"))
    assert "unit must be one of" in str(FilmstripPromptSchedule.VALIDATE_INPUTS(schedule="1: a", unit="hour"))


def test_one_box_takes_a_prompt_or_prompts_with_weights():
    assert widgets.parse_prompt("wide shot: a hill\nat dusk") == "wide shot: a hill\nat dusk"
    assert widgets.parse_prompt("4: a dog") == "4: a dog", "one line is a prompt"
    assert widgets.parse_prompt("") == ""
    assert widgets.parse_prompt("70: a cat\n\n30: a dog") == [
        {"text": "a cat", "weight": 70},
        {"text": "a dog", "weight": 30},
    ]
    with pytest.raises(FilmstripError, match="a weight must be 0 to 100"):
        widgets.parse_prompt("700: a cat\n30: a dog")


def test_a_ramp_grows_evenly_and_then_stays():
    (chain,) = FilmstripLora().add("ink", 0.8, ramp="4: 1, 0: 0")
    (lora,) = chain
    assert [lora.scale(chunk) for chunk in range(6)] == [0, 0.2, 0.4, 0.6, 0.8, 0.8]
    (more,) = FilmstripLora().add("neon", 1, loras=chain)
    (again,) = FilmstripLora().add("ink", 2, loras=more)
    assert [(each.name, each.strength, each.ramp) for each in again] == [("neon", 1, ()), ("ink", 2, ())]


def test_a_bad_ramp_is_refused_when_it_is_queued(subtests: pytest.Subtests):
    for ramp in ("1", "a: 1", "0: x", "-1: 0", "0: 1, 0: 2", "0: nan"):
        with subtests.test(ramp=ramp):
            assert "ramp" in str(FilmstripLora.VALIDATE_INPUTS(ramp=ramp))
    assert FilmstripLora.VALIDATE_INPUTS(ramp="", lora="anything") is True
    with pytest.raises(FilmstripError, match="choose one"):
        FilmstripLora().add("none", 1)


def test_what_a_chunk_says_wins_over_ramps_and_references():
    image, own = np.zeros((1, 2, 2, 3), np.float32), np.ones((1, 2, 2, 3), np.float32)
    specs = {1: ChunkSpec(1, {"lora_scales": {"ink": 9.0}}, {"vace_ref_images": own})}
    with_scales = with_loras(specs, (Lora("ink", 1, ((0, 0.0), (1, 1.0))), Lora("neon", 2)), 2)
    assert [with_scales[chunk].fields["lora_scales"] for chunk in (0, 1)] == [
        {"ink": 0.0, "neon": 2},
        {"ink": 9.0, "neon": 2},
    ]
    referenced = with_references(specs, image, 2)
    assert referenced[0].arrays["vace_ref_images"] is image
    assert referenced[1].arrays["vace_ref_images"] is own


def test_messages_use_the_words_of_the_page(subtests: pytest.Subtests):
    cases = [
        ("height: 72 is not a multiple", "height: 72 is not a multiple"),
        ("chunk_specs[1].vace_masks_shape: must be", "chunk 5, masks: must be"),
        ("chunk_specs[0] is for chunk 3 too", "chunk 3 is for chunk 3 too"),
        ("chunk_specs[0].seed: must be", "chunk 3, seed: must be"),
        ("vace_context_scale: gray does not support vace", "control strength: gray does not support vace"),
        ("input_path: 65 is not a multiple", "images: 65 is not a multiple"),
        ("the file output_12ab is gone", "the file output_12ab is gone"),
    ]
    for message, expected in cases:
        with subtests.test(message=message):
            assert widgets.in_words_of_the_page(message, [3, 5]) == expected


def test_a_date_in_a_file_name_is_as_the_page_writes_it():
    now = datetime.datetime(2026, 3, 4, 15, 6, 7, tzinfo=datetime.UTC)
    assert host.with_date("a/%date:yyyy-MM-dd%/x_%date:hhmmss%", now) == "a/2026-03-04/x_150607"
    assert host.with_date("%date:yy-M-d h:m:s%", now) == "26-3-4 15:6:7"
    assert host.with_date("%width% plain", now) == "%width% plain"


def test_metadata_is_the_workflow_without_keys(comfy: Comfy, monkeypatch: pytest.MonkeyPatch):
    graph = {
        "1": {"class_type": "FilmstripServer", "inputs": {"address": "http://x", "token": "hidden-1", "timeout_s": 60}},
        "2": {"class_type": "Text", "inputs": {"value": " hidden-2 "}},
    }
    page = {
        "nodes": [{"type": "FilmstripServer", "widgets_values": ["http://x", "hidden-1", 60]}],
        "definitions": {
            "subgraphs": [{"nodes": [{"type": "FilmstripServer", "widgets_values": ["x", "hidden-3", 60]}]}]
        },
    }
    found = host.metadata(graph, {"workflow": page}, ("hidden-2", ""))
    assert set(found) == {"prompt", "workflow"}
    assert "hidden" not in "".join(found.values())
    assert json.loads(found["prompt"])["1"]["inputs"] == {"address": "http://x", "token": "", "timeout_s": 60}
    assert json.loads(found["workflow"])["nodes"][0]["widgets_values"] == ["http://x", "", 60]
    assert graph["1"]["inputs"]["token"] == "hidden-1", "the workflow itself stays"  # type: ignore[index]
    args = __import__("comfy.cli_args").cli_args.args
    monkeypatch.setattr(args, "disable_metadata", True)
    assert host.metadata(graph, {"workflow": page}, ()) == {}


def test_images_are_cropped_around_the_centre_and_masks_stay_hard(comfy: Comfy):
    image = np.zeros((2, 64, 128, 3), np.float32)
    image[:, :, 32:96] = 1
    assert (host.resized(image, 32, 32, is_mask=False) == 1).all()
    mask = (np.arange(128, dtype=np.float32) >= 64)[None, None].repeat(64, 1).astype(np.float32)
    scaled = host.resized(mask, 32, 32, is_mask=True)
    assert scaled.shape == (1, 32, 32)
    assert set(np.unique(scaled)) == {0, 1}


def test_sound_has_many_forms(comfy: Comfy):
    wave = comfy.tensor(np.zeros((1, 2, 100), np.float32))
    sound = host.sound_of({"waveform": wave, "sample_rate": 8000})
    assert sound is not None
    assert (sound.samples.shape, sound.rate) == ((2, 100), 8000)
    assert host.sound_of(None) is None
    empty = {"waveform": comfy.tensor(np.zeros((1, 2, 0), np.float32)), "sample_rate": 8000}
    assert host.sound_of(empty) is None
    with pytest.raises(FilmstripError, match="such as Load Video"):
        host.parts_of_video(SimpleNamespace())


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_loads(example: str, comfy: Comfy):
    images, masks, video = FilmstripExample().load(example)
    frames = 36 if video else 1
    assert array_of(images).shape == (frames, 64, 64, 3)
    assert array_of(masks).shape == (frames, 64, 64)
    assert bool(array_of(masks).max()) == (example == "painted mask")
    with pytest.raises(FilmstripError, match="must be one of"):
        FilmstripExample().load("nothing")
