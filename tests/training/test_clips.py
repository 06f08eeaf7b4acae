"""Clips on disk: the same for the same seed, finished where they were cut off, and without what is held out."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from training.clips import CLIPS_A_FILE, Clips, OtherClips, make_clips, plan
from training.grammar import caption, is_held_out, parse
from training.videos import render, shots

NUM = CLIPS_A_FILE + 3
NUM_CHUNKS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clips")
    make_clips(made, NUM, NUM_CHUNKS, seed=5, processes=1)
    return made


def test_a_clip_is_what_its_captions_say(folder: Path):
    clips = Clips(folder)
    assert len(clips) == NUM
    for index in (0, CLIPS_A_FILE - 1, CLIPS_A_FILE, NUM - 1):
        frames, captions = clips[index]
        assert frames.dtype == np.uint8
        assert len(captions) == NUM_CHUNKS
        np.testing.assert_array_equal(frames, render(shots([parse(text) for text in captions])))
    assert len({clips[index][0].tobytes() for index in range(NUM)}) > NUM / 2
    assert sum(1 for _ in clips) == NUM


def test_frames_are_mapped_and_can_not_be_written_to(folder: Path):
    frames, _ = Clips(folder)[0]
    assert isinstance(frames, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        frames[0] = 0


def test_the_same_seed_makes_the_same_clips_in_any_number_of_processes(folder: Path, tmp_path: Path):
    make_clips(tmp_path, NUM, NUM_CHUNKS, seed=5, processes=2)
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_what_was_cut_off_goes_on(folder: Path, tmp_path: Path):
    make_clips(tmp_path, NUM, NUM_CHUNKS, seed=5, processes=1)
    kept, lost = tmp_path / "frames-0000.npy", tmp_path / "frames-0001.npy"
    whole = lost.read_bytes()
    written_ns = kept.stat().st_mtime_ns
    # As a process leaves it that is killed in the middle of its second file.
    lost.unlink()
    lost.with_suffix(".draft").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileNotFoundError, match="frames-0001"):
        Clips(tmp_path)
    clips = make_clips(tmp_path, NUM, NUM_CHUNKS, seed=5, processes=1)
    assert lost.read_bytes() == whole
    assert kept.stat().st_mtime_ns == written_ns
    assert not list(tmp_path.glob("*.draft"))
    assert len(clips) == NUM


@pytest.mark.parametrize(("num", "num_chunks", "seed"), [(NUM + 1, NUM_CHUNKS, 5), (NUM, 2, 5), (NUM, NUM_CHUNKS, 6)])
def test_clips_are_not_mixed_with_others(folder: Path, num: int, num_chunks: int, seed: int):
    with pytest.raises(OtherClips, match="name another folder"):
        make_clips(folder, num, num_chunks, seed, processes=1)


def test_clips_that_were_drawn_otherwise_are_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "training.videos.PALETTE",
        {
            **dict.fromkeys(("red", "green", "blue", "yellow"), (1, 2, 3)),
            **dict.fromkeys(("orange", "purple", "white", "black"), (4, 5, 6)),
        },
    )
    with pytest.raises(OtherClips):
        make_clips(folder, NUM, NUM_CHUNKS, seed=5, processes=1)


def test_an_index_beyond_the_end_is_refused(folder: Path):
    with pytest.raises(IndexError):
        Clips(folder)[NUM]


def test_plans_never_show_what_is_held_out_and_switch_in_half_of_the_clips():
    plans = [plan(7, index, 8) for index in range(1500)]
    assert not any(is_held_out(scene) for scenes in plans for scene in scenes)
    switches = Counter(sum(before != after for before, after in pairwise(scenes)) for scenes in plans)
    assert switches.keys() == {0, 1, 2}
    assert 0.45 < switches[0] / len(plans) < 0.55
    assert 0.1 < switches[2] / len(plans) < 0.2
    firsts = Counter(caption(scenes[0]) for scenes in plans)
    assert len(firsts) > 500  # of 608
    assert len(plan(7, 0, 1)) == 1
