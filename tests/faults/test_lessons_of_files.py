"""What another implementation of this API gets wrong about files, frames and numbers, each test what ours does right.

Its mistakes about generations are in `test_lessons_of_streams.py`. Every one was seen on a running server.
"""

import hashlib
import socket
import struct
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.live.frontend.test_memory import growing_less_than
from tests.support import http
from tests.support.http import ASSETS, DOWNLOAD, GENERATE, LOAD, UPLOAD, UPLOAD_DATA
from tests.support.raw_client import raw_request
from tests.support.recovery import PROBE, assert_recovers, eventually, noise
from tests.support.refusals import check_refusal, generate_refusal, refusal_of
from tests.support.server import Frontend, frontend_on

MIB = 2**20
PASSES = {"pipeline_id": "passthrough", "prompt": ""}

# -- 5. Names of files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["input_path", "data_blob_path"])
def test_no_file_of_the_server_can_be_named(server: Frontend, field: str) -> None:
    victim = server.data_dir / "outputs" / "precious"
    victim.write_bytes(struct.pack("<5I", 4, 1, 64, 96, 3) + bytes(64 * 96 * 3))
    for name in (str(victim), f"../outputs/{victim.name}", f"video-{'0' * 32}/../../outputs/precious", "/etc/passwd"):
        answer = server.post(**PROBE, **{field: name})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_path")
    assert victim.exists()
    victim.unlink()


# -- 6. A file of another kind as a video ---------------------------------------------------------------------


def test_a_file_of_another_kind_is_no_video(server: Frontend) -> None:
    with assert_recovers(server, inputs=1):
        blob = server.upload_data(struct.pack("<I", 2**32 - 1) + bytes(100))
        for name in (blob, blob.replace("blob", "video"), blob.replace("blob", "output")):
            error = generate_refusal(server, **PASSES, input_path=name)
            assert error["code"] == "unknown_path"


# -- 9. How many frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 10, 13, 48])
@pytest.mark.parametrize("pipeline", ["probe", "passthrough"])
def test_as_many_frames_come_back_as_were_asked_for(server: Frontend, pipeline: str, num_frames: int) -> None:
    path = None if pipeline == "probe" else server.upload(noise(7))
    made = server.generate_frames(pipeline_id=pipeline, prompt="", num_frames=num_frames, input_path=path)
    assert len(made) == num_frames


# -- 10. A chunk's own video, and specs -----------------------------------------------------------------------


def test_a_chunks_own_video_is_trimmed_to_the_chunk(server: Frontend) -> None:
    video, own = noise(24), noise(20)
    blob = server.upload_data(own.tobytes())
    spec = {"chunk": 0, "input_video_offset": 0, "input_video_shape": own.shape}
    made = server.generate_frames(
        **PASSES, num_frames=24, input_path=server.upload(video), data_blob_path=blob, chunk_specs=[spec]
    )
    assert np.array_equal(made, np.concatenate([own[:12], video[12:]]))


@pytest.mark.parametrize("specs", [[{"chunk": 3}], [{"chunk": 0, "text": "a"}, {"chunk": 0, "seed": 1}]])
def test_specs_beyond_the_end_and_specs_given_twice_are_refused(server: Frontend, specs: list[object]) -> None:
    error = generate_refusal(server, **PROBE, chunk_specs=specs)
    assert error["field"] == f"chunk_specs[{len(specs) - 1}].chunk"


# -- 11. Transitions, masks, offsets --------------------------------------------------------------------------


def told(server: Frontend, **fields: object) -> list[dict[str, dict[str, object]]]:
    """What the model is told of each chunk."""
    before = len(server.probe_entries())
    assert server.generate(**PROBE | fields)[-1][0] == "complete"
    return server.probe_entries()[before:]


def test_a_transition_of_no_steps_is_at_once(server: Frontend) -> None:
    spec = {"chunk": 1, "transition_target_prompts": [{"text": "b"}], "transition_num_steps": 0}
    chunks = [chunk["parameters"] for chunk in told(server, chunk_specs=[spec])]
    assert [chunk["prompts"][0][0] for chunk in chunks] == ["x", "x", "b"]  # type: ignore[index]
    assert [chunk["transition"] and chunk["transition"]["num_steps"] for chunk in chunks] == [None, 0, None]  # type: ignore[index]


def test_masks_go_without_frames_and_from_any_byte(server: Frontend) -> None:
    masks = np.random.default_rng(0).integers(0, 2, (1, 1, 12, 64, 96)).astype("<f4")
    for offset in range(4):
        blob = server.upload_data(bytes(offset) + masks.tobytes())
        spec = {"chunk": 0, "vace_masks_offset": offset, "vace_masks_shape": masks.shape}
        tensors = told(server, num_frames=12, data_blob_path=blob, chunk_specs=[spec])[0]["tensors"]
        assert tensors["vace_masks"] == {"sha256": digest(masks), "shape": list(masks.shape)}
        assert "vace_frames" not in tensors


def test_arrays_that_are_not_locked_are_resampled(server: Frontend) -> None:
    frames = np.linspace(-1, 1, 24, dtype="<f4").reshape(1, 1, 24, 1, 1) * np.ones((1, 3, 1, 64, 96), "<f4")
    blob = server.upload_data(frames.tobytes())
    spec = {"chunk": 0, "vace_frames_offset": 0, "vace_frames_shape": frames.shape}
    sums = []
    for locked in (True, False):
        specs = [spec | {"vace_temporally_locked": locked}]
        chunk = told(server, num_frames=12, data_blob_path=blob, chunk_specs=specs)[0]
        sums.append(chunk["tensors"]["vace_frames"]["sha256"])  # type: ignore[index]
    assert sums[0] == digest(frames[:, :, :12])
    assert sums[1] != sums[0]


def digest(array: np.ndarray) -> str:  # type: ignore[type-arg]
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


# -- 13. Values -----------------------------------------------------------------------------------------------


def test_every_value_survives(server: Frontend) -> None:
    video = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(server.generate_frames(**PASSES, num_frames=1, input_path=server.upload(video)), video)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_an_error_that_names_it(server: Frontend, value: float) -> None:
    frames = np.zeros((1, 3, 12, 64, 96), "<f4")
    frames[0, 2, 11, 63, 95] = value
    blob = server.upload_data(frames.tobytes())
    spec = {"chunk": 1, "vace_frames_offset": 0, "vace_frames_shape": frames.shape}
    name, data = server.generate(**PROBE, data_blob_path=blob, chunk_specs=[spec])[-1]
    assert (name, data["code"]) == ("error", "invalid_field")
    assert "chunk 1" in data["error"]
    assert "vace_frames" in data["error"]


def test_a_video_of_one_size_comes_out_whatever_sizes_go_in(server: Frontend) -> None:
    """A chunk's own video of another size than the rest: the header tells the truth."""
    own = noise(12, 32, 48)
    blob = server.upload_data(own.tobytes())
    spec = {"chunk": 1, "input_video_offset": 0, "input_video_shape": own.shape}
    wanted = PASSES | {"num_frames": 24, "input_path": server.upload(noise(24)), "data_blob_path": blob}
    data = server.generate(**wanted, chunk_specs=[spec])[-1][1]
    assert data["video_shape"] == [24, 64, 96, 3]
    assert server.download(data["output_path"]).shape == (24, 64, 96, 3)


# -- 14. What stays and what goes -----------------------------------------------------------------------------


def test_an_output_outlives_downloads_in_part_and_broken_off(server: Frontend) -> None:
    output = server.generate(**PROBE)[-1][1]["output_path"]
    whole = server.download(output)
    address = server.url + DOWNLOAD
    assert http.get(address, params={"path": output}, headers={"Range": "bytes=0-99"}).status_code == 206
    with http.stream("GET", address, params={"path": output}) as answer:
        next(answer.iter_raw(1000))
    assert np.array_equal(server.download(output), whole)


def test_an_input_outlives_a_generation_that_fails(server: Frontend) -> None:
    path = server.upload(noise(12))
    server.generate(**PROBE | {"prompt": "!raise"}, input_path=path)
    assert np.array_equal(server.generate_frames(**PASSES, num_frames=12, input_path=path), noise(12))


@pytest.mark.parametrize("path", [UPLOAD, UPLOAD_DATA, ASSETS])
def test_an_upload_that_is_broken_off_leaves_no_file(server: Frontend, path: str) -> None:
    with assert_recovers(server):
        address = urlsplit(server.url)
        sides = [f"X-Video-{side}: 1" for side in ("Frames", "Height", "Channels")]
        with closing(socket.create_connection((str(address.hostname), int(address.port or 0)))) as connection:
            head = raw_request(f"POST {path}", *sides, f"X-Video-Width: {MIB}", length=MIB)
            connection.sendall(head + bytes(MIB // 2))
            eventually(lambda: server.stored("partial"))


def test_every_upload_has_a_limit(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> None:
    limits = {"upload_bytes": 1000, "blob_bytes": 1000, "asset_bytes": 1000, "json_bytes": 1000}
    headers = {"X-Video-Frames": "1", "X-Video-Height": "1", "X-Video-Width": "1001", "X-Video-Channels": "1"}
    with frontend_on(server, tmp_path_factory.mktemp("small"), **limits) as small:
        for path in (UPLOAD, UPLOAD_DATA, ASSETS, GENERATE, LOAD):
            for body in (bytes(1001), (bytes(1) for _ in range(1001))):
                answer = http.post(small.url + path, content=body, headers=headers)
                assert check_refusal(small, answer)["code"] == "too_large"
        assert small.stored() == []


# -- 15. Memory -----------------------------------------------------------------------------------------------


def test_neither_a_blob_nor_a_loop_is_held_in_memory(
    server: Frontend, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with frontend_on(server, tmp_path_factory.mktemp("memory")) as fresh:
        fresh.upload_data(bytes(MIB))  # what the first request allocates once
        frame = fresh.upload(noise(1, 160, 288))
        fresh.generate_frames(**PASSES, num_frames=24, input_path=frame)
        with growing_less_than(fresh, 64 * MIB):
            pieces = (bytes(MIB) for _ in range(256))
            answer = http.post(fresh.url + UPLOAD_DATA, content=pieces)
            spec = {"chunk": 0, "vace_frames_offset": 200 * MIB, "vace_frames_shape": [1, 3, 12, 64, 96]}
            blob = answer.json()["data_blob_path"]
            assert fresh.generate(**PROBE, data_blob_path=blob, chunk_specs=[spec])[-1][0] == "complete"
            looped = fresh.generate(**PASSES, num_frames=1000, input_path=frame)  # 132 MiB in all
            assert looped[-1][0] == "complete"


# -- 16. Numbers that are none --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["abc", "-1", str(2**32), "", "1.5"])
@pytest.mark.parametrize("side", ["Frames", "Height", "Width", "Channels"])
def test_a_header_that_is_no_count_is_a_400(server: Frontend, side: str, value: str) -> None:
    headers = {f"X-Video-{name}": "1" for name in ("Frames", "Height", "Width")} | {f"X-Video-{side}": value}
    answer = http.post(server.url + UPLOAD, content=bytes(3), headers=headers)
    error = check_refusal(server, answer)
    assert (error["code"], error["field"]) == ("bad_header", f"X-Video-{side}")


def test_five_megabytes_of_a_bad_body_are_not_sent_back(server: Frontend) -> None:
    text = "x" * 5_000_000
    for fields in (
        {"num_frames": text},
        {text: 1},
        {"prompt": [text]},
        {"lora_scales": {text: 1}},
        {"input_path": text},
    ):
        answer = server.post(**PROBE | fields)
        assert check_refusal(server, answer)
        assert len(answer.content) < 1000


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_json_number_is_refused(server: Frontend, number: str) -> None:
    for path, start in (
        (GENERATE, '{"pipeline_id": "probe", "prompt": "x", "noise_scale": '),
        (LOAD, '{"load_params": '),
    ):
        refusal_of(server, f"POST {path}", body=f"{start}{number}}}".encode())
