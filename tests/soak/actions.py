"""The actions of a client: uploads, downloads and generations, each with its expected result."""

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from PIL import Image

from filmstrip.wire import VIDEO_HEADER_BYTES
from tests.soak.client import ClientLeft, GenerationCase, SoakClient, StoredFile, fetch, follow
from tests.soak.judge import (
    CHUNK,
    PROBE_SIZE,
    ExpectedOutcome,
    Frames,
    gray,
    looped,
    probe_pattern,
    with_own_videos,
)
from tests.support.http import ASSETS, DOWNLOAD, UPLOAD, UPLOAD_DATA


def headers_of(video: Frames) -> dict[str, str]:
    """The X-Video-* headers of a video."""
    return {
        f"X-Video-{side}": str(length)
        for side, length in zip(("Frames", "Height", "Width", "Channels"), video.shape, strict=True)
    }


def send_video(client: SoakClient, kind: str, video: Frames, longest_pause_s: float | None = None) -> StoredFile | None:
    """Upload a video, in pieces if there is a pause; None if it did not fit or failed."""
    data = video.tobytes()
    body = data if longest_pause_s is None else client.pieces(data, longest_pause_s)
    headers = headers_of(video)
    if longest_pause_s is not None and client.random.random() < 0.5:  # else chunked, of unknown length
        headers["Content-Length"] = str(len(data))
    began = time.time()
    answer = client.send(kind, "POST", UPLOAD, {200, 507}, content=body, headers=headers)
    if answer is None or answer.status_code != 200:
        return None
    uploaded = answer.json()
    if uploaded["shape"] != list(video.shape) or uploaded["num_frames"] != len(video):
        client.judge.fail(kind, headers, f"the response says {uploaded}")
        return None
    return client.keep(client.videos, StoredFile(uploaded["input_path"], video, began, time.time(), video.shape))


def send_blob(client: SoakClient, kind: str, blob: bytes) -> StoredFile | None:
    """Upload a blob; None if it did not fit or failed."""
    began = time.time()
    answer = client.send(kind, "POST", UPLOAD_DATA, {200, 507}, content=blob)
    if answer is None or answer.status_code != 200:
        return None
    uploaded = answer.json()
    if uploaded["size_bytes"] != len(blob):
        client.judge.fail(kind, f"{len(blob)} bytes", f"the response says {uploaded}")
    return StoredFile(uploaded["data_blob_path"], blob, began, time.time())


def random_video(client: SoakClient, *, size: tuple[int, int] | None = None) -> Frames:
    """Noise of a random shape."""
    height, width = size or (client.random.randint(8, 96), client.random.randint(8, 128))
    return client.noise(client.random.randint(1, 40), height, width, 3)


def picture(client: SoakClient) -> bytes:
    """A small PNG, JPEG or WebP file."""
    pixels = client.noise(client.random.randint(1, 64), client.random.randint(1, 64), 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, client.random.choice(["PNG", "JPEG", "WEBP"]))
    return file.getvalue()


# -- Uploads ------------------------------------------------------------------------------------------------


def video(client: SoakClient) -> None:
    """Upload a video, now and then one whose channels no model supports."""
    if client.random.random() < 0.1:
        data = client.noise(3, 9, 7, client.random.choice([1, 4]))
        client.send("video", "POST", UPLOAD, {200, 507}, content=data.tobytes(), headers=headers_of(data))
    else:
        send_video(client, "video", random_video(client))


def video_in_pieces(client: SoakClient) -> None:
    """Upload a video in pieces, with pauses."""
    send_video(client, "video_in_pieces", random_video(client), longest_pause_s=0.12)


def blob(client: SoakClient) -> None:
    """Upload bytes that are not used."""
    send_blob(client, "blob", client.random.randbytes(client.random.randint(1, 300_000)))


def asset(client: SoakClient) -> None:
    """Upload an image."""
    data = picture(client)
    began = time.time()
    answer = client.send("asset", "POST", ASSETS, {200, 507}, content=data)
    if answer is not None and answer.status_code == 200:
        client.keep(client.assets, StoredFile(answer.json()["path"], data, began, time.time()))


def left_upload(client: SoakClient) -> None:
    """Upload, and disconnect within the body."""
    data = random_video(client)
    raw = data.tobytes()
    body = client.pieces(raw, 0.05, leave_at=client.random.randint(0, len(raw) - 1))
    headers = headers_of(data) | {"Content-Length": str(len(raw))}
    try:
        path = client.random.choice([UPLOAD, UPLOAD_DATA])
        client.http.request("POST", path, content=body, headers=headers)
    except (ClientLeft, httpx.HTTPError):  # the server may refuse it before the client disconnects
        pass


def stalled_upload(client: SoakClient) -> None:
    """Upload, with a pause longer than the server waits."""
    raw = client.random.randbytes(10_000)

    def body() -> Iterator[bytes]:
        yield raw[:100]
        time.sleep(client.body_timeout_s + 1)
        yield raw[100:]

    headers = {"Content-Length": str(len(raw))}
    answer = client.send("stalled_upload", "POST", UPLOAD_DATA, {200, 408, 507}, content=body(), headers=headers)
    # A frontend that was paused meanwhile may not have noticed.
    if answer is not None and answer.status_code == 200 and not client.judge.met_fault(time.monotonic()):
        client.judge.fail("stalled_upload", headers, "200, although it paused for too long")


# -- Downloads and others -----------------------------------------------------------------------------------


def whole(client: SoakClient) -> None:
    """Download a video."""
    output = client.any_of(client.outputs)
    if output is not None:
        fetch(client, "whole_download", output)


def in_ranges(client: SoakClient) -> None:
    """Download a range of a video."""
    output = client.any_of(client.outputs)
    if output is None or not isinstance(output.content, bytes):
        return
    size = len(output.content)
    start = client.random.randrange(size)
    stop = client.random.randint(start + 1, size)
    text, expected = client.random.choice(
        [
            (f"bytes={start}-{stop - 1}", output.content[start:stop]),
            (f"bytes={start}-", output.content[start:]),
            (f"bytes=-{size - start}", output.content[start:]),
            ("bytes=0-0,5-9", output.content),
        ]
    )
    answer = client.send(
        "range", "GET", DOWNLOAD, {200, 206}, files=[output], params={"path": output.name}, headers={"Range": text}
    )
    if answer is not None and answer.status_code in {200, 206} and answer.content != expected:
        client.judge.fail("range", f"{output.name} {text}", f"{len(answer.content)} different bytes")


def head(client: SoakClient) -> None:
    """Request the headers of a video."""
    output = client.any_of(client.outputs)
    if output is None:
        return
    answer = client.send("head", "HEAD", DOWNLOAD, {200}, files=[output], params={"path": output.name})
    if answer is None or answer.status_code != 200:
        return
    frames, height, width, channels = output.shape
    size = VIDEO_HEADER_BYTES + frames * height * width * channels
    if answer.content or answer.headers["Content-Length"] != str(size):
        client.judge.fail("head", output.name, f"{dict(answer.headers)}, expected {size} bytes")


def broken_off(client: SoakClient) -> None:
    """Download, and disconnect."""
    output = client.any_of(client.outputs)
    if output is None:
        return
    with client.http.stream("GET", DOWNLOAD, params={"path": output.name}) as answer:
        client.judge.count(client.judge.statuses, answer.status_code)
        next(answer.iter_raw(), b"")


def look(client: SoakClient) -> None:
    """Request what users read while generations run."""
    path = client.random.choice(
        ["/health", "/api/v1/pipelines", "/api/v1/pipeline/status", "/metrics", "/openapi.json", "/docs"]
    )
    answer = client.send("look", "GET", path, {200})
    if answer is not None and answer.status_code == 200 and not answer.content:
        client.judge.fail("look", path, "empty response")


def load(client: SoakClient) -> None:
    """Load a pipeline, as other clients of this API do first."""
    body = {"pipeline_ids": [client.random.choice(["probe", "gray", "scribble"])], "load_params": {"a": [1, None]}}
    client.send("load", "POST", "/api/v1/pipeline/load", {200}, json=body)


def cancel(client: SoakClient) -> None:
    """Cancel, whoever's generation it is."""
    answer = client.send("cancel", "POST", "/api/v1/generate/cancel", {200})
    if answer is not None and answer.json()["status"] not in {"cancelling", "idle"}:
        client.judge.fail("cancel", "", answer.text)


_EXACT = ("passthrough", "gray")
_PROCESSORS = (*_EXACT, "scribble", "optical-flow")


def _input(client: SoakClient, kind: str, size: tuple[int, int] | None = None) -> StoredFile | None:
    """An uploaded video: an earlier one, now and then expired, or a new one."""
    video = client.any_of(client.videos) if size is None and client.random.random() < 0.7 else None
    if video is not None and (not video.may_have_expired(client.ttl_s) or client.random.random() < 0.2):
        return video
    return send_video(client, kind, random_video(client, size=size))


def _frames(video: StoredFile) -> Frames:
    assert isinstance(video.content, np.ndarray)
    return video.content


# -- Frame processors ---------------------------------------------------------------------------------------


def exact_chain(client: SoakClient) -> bool:
    """Run a chain whose output is known to the byte."""
    video = _input(client, "exact_chain")
    if video is None:
        return True
    chain = [client.random.choice(_EXACT) for _ in range(client.random.randint(1, 3))]
    names = {1: ["pipeline_id"], 2: ["pre_processor_id", "pipeline_id"]}.get(
        len(chain), ["pre_processor_id", "pipeline_id", "post_processor_id"]
    )
    num_frames = client.random.randint(1, 60)
    request = {"prompt": "", "num_frames": num_frames, "input_path": video.name, **dict(zip(names, chain, strict=True))}

    def frames(_: list[int]) -> Frames:
        passed = looped(_frames(video), num_frames)
        return gray(passed) if "gray" in chain else passed

    size = video.shape[1], video.shape[2]
    return follow(client, GenerationCase("exact_chain", request, ExpectedOutcome(num_frames, size), [video], frames))


def other_chain(client: SoakClient) -> bool:
    """Run any frame processors, perhaps at another size: only the shape is known."""
    video = _input(client, "other_chain")
    if video is None:
        return True
    num_frames = client.random.randint(1, 30)
    request: dict[str, Any] = {"prompt": [{"text": "a", "weight": 1}], "num_frames": num_frames}
    request |= {"input_path": video.name, "pipeline_id": client.random.choice(_PROCESSORS[2:])}
    for name in ("pre_processor_id", "post_processor_id"):
        if client.random.random() < 0.4:
            request[name] = client.random.choice(_PROCESSORS)
    size = video.shape[1], video.shape[2]
    if client.random.random() < 0.4:
        size = client.random.randint(64, 96), client.random.randint(64, 128)
        request |= {"height": size[0], "width": size[1]}
    return follow(client, GenerationCase("other_chain", request, ExpectedOutcome(num_frames, size), [video]))


def own_videos(client: SoakClient) -> bool:
    """Run chunks with their own videos, at odd offsets of a blob; the others loop the input, if there is one."""
    whole = _input(client, "own_videos") if client.random.random() < 0.5 else None
    size = (whole.shape[1], whole.shape[2]) if whole else (client.random.randint(8, 64), client.random.randint(8, 64))
    num_frames = client.random.randint(1, 48)
    num_chunks = -(-num_frames // CHUNK)
    indices = [index for index in range(num_chunks) if whole is None or client.random.random() < 0.6]
    own = {index: client.noise(client.random.randint(1, 20), *size, 3) for index in indices}
    parts: dict[int, dict[str, Frames | np.ndarray[Any, Any]]] = {
        index: {"input_video": video} for index, video in own.items()
    }
    blob, specs = _pack(client, parts)
    uploaded = send_blob(client, "own_videos", blob)
    if uploaded is None:
        return True
    request: dict[str, Any] = {"pipeline_id": "passthrough", "prompt": "", "num_frames": num_frames}
    request |= {"data_blob_path": uploaded.name, "chunk_specs": specs}
    if whole is not None:
        request["input_path"] = whole.name

    def frames(_: list[int]) -> Frames:
        return with_own_videos(None if whole is None else _frames(whole), own, num_frames)

    files = [uploaded] if whole is None else [uploaded, whole]
    return follow(client, GenerationCase("own_videos", request, ExpectedOutcome(num_frames, size), files, frames))


def _pack(client: SoakClient, parts: dict[int, dict[str, Any]]) -> tuple[bytes, list[dict[str, Any]]]:
    """A blob with arrays at any offsets, and the chunk specs that refer to them."""
    blob, specs = bytearray(client.random.randbytes(1)), []
    for index, arrays in parts.items():
        spec: dict[str, Any] = {"chunk": index}
        for name, array in arrays.items():
            blob += client.random.randbytes(client.random.randint(0, 7))
            spec |= {f"{name}_offset": len(blob), f"{name}_shape": list(array.shape)}
            blob += array.tobytes()
        specs.append(spec)
    client.random.shuffle(specs)
    return bytes(blob), specs


# -- The probe: a generator with every feature --------------------------------------------------------------


def probe_video(client: SoakClient) -> bool:
    """Run the probe in video mode, which returns its input."""
    video = _input(client, "probe_video", PROBE_SIZE)
    if video is None:
        return True
    num_frames = client.random.randint(1, 40)
    request = {"pipeline_id": "probe", "prompt": "a cat", "num_frames": num_frames, "input_path": video.name}
    request |= {"noise_scale": client.random.random(), "manage_cache": client.random.random() < 0.5}

    def frames(_: list[int]) -> Frames:
        return looped(_frames(video), num_frames)

    return follow(
        client, GenerationCase("probe_video", request, ExpectedOutcome(num_frames, PROBE_SIZE), [video], frames)
    )


def _text(client: SoakClient, prompt: str = "a cat") -> tuple[dict[str, Any], ExpectedOutcome, list[int]]:
    """A request in text mode with seeds, prompts and transitions, its outcome, and each chunk's seed."""
    num_frames = client.random.randint(1, 60)
    seed = client.random.randint(0, 2**62)
    num_chunks = -(-num_frames // CHUNK)  # at least
    seeds, specs = [seed] * 100, []
    for index in range(num_chunks):
        spec: dict[str, Any] = {"chunk": index}
        if client.random.random() < 0.3:
            spec["seed"] = seeds[index] = client.random.randint(0, 2**62)
        if client.random.random() < 0.2 and not prompt.startswith("!"):
            spec["prompts"] = [{"text": "a", "weight": 30}, {"text": "b", "weight": 70}]
            spec["transition_target_prompts"] = [{"text": "dog", "weight": 1.5}]
            spec["transition_num_steps"] = client.random.randint(0, 3)
        if client.random.random() < 0.2:
            spec["reset_cache"] = True
        if len(spec) > 1:
            specs.append(spec)
    request = {"pipeline_id": "probe", "prompt": prompt, "num_frames": num_frames, "seed": seed, "chunk_specs": specs}
    request["lora_scales"] = client.random.choice([None, {"ink": 0.5}])
    return request, ExpectedOutcome(num_frames, PROBE_SIZE), seeds


def _pattern_case(client: SoakClient, kind: str, prompt: str = "a cat", **when: float) -> GenerationCase:
    request, outcome, seeds = _text(client, prompt)
    return GenerationCase(kind, request, outcome, (), lambda counts: probe_pattern(seeds, counts), **when)


def probe_text(client: SoakClient) -> bool:
    """Run the probe in text mode, which returns its pattern."""
    return follow(client, _pattern_case(client, "probe_text"))


def asleep(client: SoakClient) -> bool:
    """Run slow chunks."""
    return follow(client, _pattern_case(client, "asleep", f"!sleep {client.random.uniform(0.1, 0.8):.2f}"))


def cancelled(client: SoakClient) -> bool:
    """Cancel a generation at a random moment."""
    prompt = f"!sleep {client.random.uniform(0.05, 0.6):.2f}"
    return follow(client, _pattern_case(client, "cancelled", prompt, cancel_after_s=client.random.uniform(0, 1.5)))


def left(client: SoakClient) -> bool:
    """Disconnect from a generation at a random moment."""
    prompt = f"!sleep {client.random.uniform(0.3, 2):.2f}"
    return follow(client, _pattern_case(client, "left", prompt, leave_after_s=client.random.uniform(0, 1.2)))


def failing(client: SoakClient) -> bool:
    """Let the model fail."""
    prompt, code = client.random.choice(
        [("!raise", "model_error"), ("!error", "model_error"), ("!shape", "bad_model_output")]
    )
    num_frames = client.random.randint(1, 30)
    request = {"pipeline_id": "probe", "prompt": prompt, "num_frames": num_frames}
    return follow(
        client, GenerationCase("failing", request, ExpectedOutcome(num_frames, PROBE_SIZE, frozenset({code})))
    )


def vace(client: SoakClient) -> bool:
    """Send VACE frames and masks at odd offsets, key images and references; now and then a NaN."""
    num_frames = client.random.randint(1, 30)
    broken = client.random.random() < 0.2
    parts: dict[int, dict[str, Any]] = {}
    for index in range(-(-num_frames // CHUNK)):
        shape = (1, client.random.choice([1, 3]), client.random.randint(1, 14), *PROBE_SIZE)
        frames = client.numbers.uniform(-1, 1, shape).astype("<f4")
        if broken:
            frames[0, 0, 0, 0, 0] = np.nan
        parts[index] = {"vace_frames": frames}
        if client.random.random() < 0.5:
            parts[index]["vace_masks"] = client.numbers.uniform(0, 1, (1, 1, *shape[2:])).astype("<f4")
    blob, specs = _pack(client, parts)
    uploaded = send_blob(client, "vace", blob)
    if uploaded is None:
        return True
    files = [uploaded]
    asset = client.any_of(client.assets)
    for spec in specs:
        spec["vace_temporally_locked"] = client.random.random() < 0.7
        if client.random.random() < 0.4:
            spec["first_frame_image"] = "data:image/png;base64," + base64.b64encode(picture(client)).decode()
        if asset is not None and not asset.has_expired(client.ttl_s) and client.random.random() < 0.4:
            spec["vace_ref_images"] = [asset.name, asset.name]
            files.append(asset)
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": num_frames, "chunk_specs": specs}
    request |= {"data_blob_path": uploaded.name, "seed": 7}
    codes = frozenset({"invalid_field"}) if broken else frozenset[str]()

    def pattern(counts: list[int]) -> Frames:
        return probe_pattern([7] * len(counts), counts)

    return follow(
        client, GenerationCase("vace", request, ExpectedOutcome(num_frames, PROBE_SIZE, codes), files, pattern)
    )


# -- Faults that a request provokes -------------------------------------------------------------------------


def provoke(client: SoakClient, prompt: str, code: str, timeout_s: float = 30.0) -> bool:
    """Let the model die or hang, as soon as the slot is free; False if it never was."""
    request = {"pipeline_id": "probe", "prompt": prompt, "num_frames": 20}
    case = GenerationCase(prompt, request, ExpectedOutcome(20, PROBE_SIZE, frozenset({code})))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if follow(client, case):
            return True
        time.sleep(client.random.uniform(0.05, 0.3))
    return False
