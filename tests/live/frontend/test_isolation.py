"""No generation sees anything of an earlier one: each has its own sequence in each model, from its first chunk on."""

import numpy as np
import pytest

from tests.support.recovery import PROBE, assert_recovers, noise, open_sequences
from tests.support.server import MODEL_NAMES, Frames, Frontend


def test_the_model_has_finished_before_the_slot_is_free(server: Frontend) -> None:
    """Whether the generation before was left by its client, failed or completed."""
    with assert_recovers(server, outputs=4):
        for prompt in ("!sleep 30", "!raise", "x"):
            entries = len(server.probe_entries())
            with server.stream(pipeline_id="probe", prompt=prompt, num_frames=9) as events:
                server.wait_for_chunk(entries)
                if prompt != "!sleep 30":
                    list(events)
            server.wait_idle()
            assert open_sequences(server, "probe") == 0
            assert server.generate(pipeline_id="probe", prompt="x", num_frames=9)[-1][0] == "complete"
            chunks = [entry for entry in server.probe_entries()[entries:] if entry["event"] == "chunk"]
            assert chunks[-1]["num_chunks"] == 1  # its own sequence


def test_a_pipeline_after_a_pre_processor_starts_with_a_reset(server: Frontend, clip: Frames) -> None:
    before = len(server.probe_entries())
    server.generate_frames(**PROBE | {"num_frames": 30}, input_path=server.upload(clip), pre_processor_id="gray")
    chunks = server.probe_entries()[before:]
    assert [chunk["parameters"]["reset"] for chunk in chunks] == [True, False, False]
    assert [chunk["parameters"]["index"] for chunk in chunks] == [0, 1, 2]
    assert [chunk["num_chunks"] for chunk in chunks] == [1, 2, 3]  # one sequence, which starts with chunk 0
    assert all("input_video" in chunk["tensors"] for chunk in chunks)


def test_the_same_request_yields_the_same_bytes_after_another_one(
    server: Frontend, clip: Frames, subtests: pytest.Subtests
) -> None:
    for pipeline in MODEL_NAMES:
        with subtests.test(pipeline):
            request = {"pipeline_id": pipeline, "prompt": "a", "num_frames": 30, "input_path": server.upload(clip)}
            first = server.generate_frames(**request)
            other = {"prompt": "b", "num_frames": 24, "input_path": server.upload(noise(24))}
            server.generate_frames(**request | other)
            assert np.array_equal(server.generate_frames(**request), first)


def test_each_chunk_is_generated_once_with_its_seed(server: Frontend) -> None:
    """Without retries, also of a chunk that fails."""
    for text, indices in (("x", [0, 1, 2]), ("!raise", [0, 1])):
        before = len(server.probe_entries())
        server.generate(**PROBE, seed=11, chunk_specs=[{"chunk": 1, "text": text, "seed": 12}])
        chunks = [entry["parameters"] for entry in server.probe_entries()[before:]]
        assert [chunk["index"] for chunk in chunks] == indices
        assert [chunk["seed"] for chunk in chunks] == [11, 12, 11][: len(indices)]
