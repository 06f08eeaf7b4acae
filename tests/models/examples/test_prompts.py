"""What the small model makes of prompts that change, blend and move, through HTTP: means over several scenes."""

import numpy as np
import pytest

from examples.show import make
from filmstrip.client import Client
from tests.support.toyworld.grammar import Scene, caption
from tests.support.toyworld.metrics import colour_way, right_shares
from tests.support.toyworld.videos import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, split_chunks

pytestmark = pytest.mark.timeout(600)  # the first of them waits for the export

SCENES = (
    (Scene("red", "square", "right", "blue"), "yellow"),
    (Scene("white", "circle", "up", "purple"), "green"),
    (Scene("yellow", "triangle", "left", "black"), "blue"),
    (Scene("black", "circle", "down", "orange"), "white"),
)
"""Scenes, and the colour that their objects change to."""
WEIGHTS = (0, 25, 50, 75, 100)
NEAR = 0.2
"""Of the way between two colours, to either end of it."""
MAX_BACK = 0.1
"""Of the way, that a step in the right direction may lead back."""
LEAST_RIGHT = 0.7
"""Of the scenes, in the second chunk after their prompt has changed."""


def recoloured(scene: Scene, colour: str) -> str:
    return caption(Scene(colour, scene.shape, scene.motion, scene.background))


def check_way(way: np.ndarray) -> None:
    """From one colour to the other, with no long step back."""
    assert way[0] < NEAR, way
    assert way[-1] > 1 - NEAR, way
    assert np.diff(way).min() > -MAX_BACK, way  # nor a chunk without an object: NaN


def test_a_prompt_holds_until_the_next(client: Client):
    found = []
    for seed, (scene, colour) in enumerate(SCENES):
        frames = make(
            client,
            prompt=caption(scene),
            num_frames=FIRST_CHUNK_FRAMES + 4 * CHUNK_FRAMES,
            seed=seed,
            chunk_specs=[{"chunk": 3, "text": recoloured(scene, colour)}],
        )
        *_, before, _, after = split_chunks(frames)
        changed = Scene(colour, scene.shape, scene.motion, scene.background)
        found.append((right_shares([before], scene), right_shares([after], changed)))
    for name in ("colour", "background", "shape", "motion"):
        assert np.mean([before[name] for before, _ in found]) >= LEAST_RIGHT, name
        assert np.mean([after[name] for _, after in found]) >= LEAST_RIGHT, name


def test_a_blend_is_between_its_prompts(client: Client):
    ways = []
    for seed, (scene, colour) in enumerate(SCENES):
        blends = [
            [{"text": caption(scene), "weight": 100 - weight}, {"text": recoloured(scene, colour), "weight": weight}]
            for weight in WEIGHTS
        ]
        made = [make(client, prompt=blend, num_frames=FIRST_CHUNK_FRAMES + CHUNK_FRAMES, seed=seed) for blend in blends]
        ways.append([colour_way(frames, scene.colour, colour) for frames in made])
    check_way(np.mean(ways, axis=0))


def test_a_transition_goes_from_prompt_to_prompt(client: Client):
    ways = []
    for seed, (scene, colour) in enumerate(SCENES):
        target = {"text": recoloured(scene, colour), "weight": 100}
        frames = make(
            client,
            prompt=caption(scene),
            num_frames=FIRST_CHUNK_FRAMES + 8 * CHUNK_FRAMES,
            seed=seed,
            chunk_specs=[{"chunk": 2, "transition_target_prompts": [target], "transition_num_steps": 5}],
        )
        ways.append([colour_way(chunk, scene.colour, colour) for chunk in split_chunks(frames)])
    check_way(np.mean(ways, axis=0))
