"""What the small model makes of all that leads it beside a prompt, through HTTP: means over held-out scenes.

The thresholds stand in `research.evaluation`, and how each number is taken.
"""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: see docs/export.md")

from examples.show import PIPELINE, make
from filmstrip.client import BlobBuilder, Client, as_vace_frames
from research.augmentations import CONTROLS
from research.condition_score import ServedCases
from research.evaluation import MEASUREMENTS, EvalCase
from research.local_sampler import LocalSampler
from tests.support.server import ROOT
from tests.support.toyworld.grammar import Scene, caption
from tests.support.toyworld.videos import CHUNK_FRAMES, render

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

NUM_SCENES = {"inpainting": 12}
"""Means over fewer scenes are a matter of chance; 6 are enough for the others."""
MAX_LEVELS_APART = 4
"""Of 256, between the exported engines and the modules that they were made of."""
SCENE = Scene("white", "circle", "down", "blue")


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_every_number_is_reached(client: Client, kind: str):
    numbers = MEASUREMENTS[kind](ServedCases(client, PIPELINE), NUM_SCENES.get(kind, 6)).numbers
    missed = [f"{number.what}: {number.value:.3f}, not {number.least}" for number in numbers if not number.holds]
    assert not missed


CASE = EvalCase(caption(SCENE), 2, 3)
SHOTS = [(SCENE, 2 * CHUNK_FRAMES)]
MASK = np.repeat((np.arange(64) > 40).astype(np.float32)[None, :, None], 2 * CHUNK_FRAMES, 0).repeat(64, 2)
CASES = {
    "source": replace(CASE, source=render(SHOTS), noise_scale=0.5),
    "control": replace(CASE, source=render(SHOTS), control="scribble"),
    "masks": replace(CASE, frames=render(SHOTS), masks=MASK),
    "first image": replace(CASE, first_image=render(SHOTS)[0]),
    "last image": replace(CASE, last_image=render(SHOTS)[0]),
    "reference": replace(CASE, reference=render(SHOTS)[0]),
    "LoRA": replace(CASE, lora_scales=(0.0, 1.0)),
}


@pytest.fixture(scope="module")
def sampler() -> LocalSampler:
    """The same checkpoint in this process."""
    return LocalSampler(ROOT / "checkpoints" / PIPELINE)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_in_this_process_makes_what_the_server_makes(client: Client, sampler: LocalSampler, name: str):
    served, own = ServedCases(client, PIPELINE)(CASES[name]), sampler(CASES[name])
    assert served.shape == own.shape
    assert np.abs(served.astype(int) - own).max() <= MAX_LEVELS_APART


@pytest.mark.parametrize("control", CONTROLS)
def test_control_frames_of_ones_own_are_as_good_as_a_pre_processor(client: Client, control: str):
    leading = render(SHOTS, (20, 44))
    asked = {"prompt": caption(SCENE), "num_frames": len(leading), "seed": 5}
    path = client.upload(leading).input_path
    chained = make(client, input_path=path, pre_processor_id=control, vace_use_input_video=True, **asked)
    blob, frames = BlobBuilder(), CONTROLS[control].process(leading)
    for chunk in range(2):
        blob.chunk(chunk, vace_frames=as_vace_frames(frames[CHUNK_FRAMES * chunk : CHUNK_FRAMES * (chunk + 1)]))
    data = client.upload_data(blob).data_blob_path
    own = make(client, data_blob_path=data, chunk_specs=blob.chunk_specs, **asked)
    assert np.array_equal(chained, own)
