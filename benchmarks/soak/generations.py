"""Generations of every kind, each with what it must come to."""

import base64
import time
from typing import Any

import numpy as np

from benchmarks.soak.client import Client, Held
from benchmarks.soak.expected import CHUNK, PROBE_SIZE, gray, looped, probe_pattern, with_own_videos
from benchmarks.soak.judge import Frames, Wanted
from benchmarks.soak.stream import Order, follow
from benchmarks.soak.uploads import picture, random_video, send_blob, send_video

_EXACT = ("passthrough", "gray")
_PROCESSORS = (*_EXACT, "scribble", "optical-flow")


def _input(client: Client, kind: str, size: tuple[int, int] | None = None) -> Held | None:
    """An uploaded video: one of those there are, now and then one that has expired, else a new one."""
    held = client.any_of(client.videos) if size is None and client.random.random() < 0.7 else None
    if held is not None and (not held.may_be_gone(client.ttl_s) or client.random.random() < 0.2):
        return held
    return send_video(client, kind, random_video(client, size=size))


def _frames(held: Held) -> Frames:
    assert isinstance(held.content, np.ndarray)
    return held.content


# -- Frame processors ---------------------------------------------------------------------------------------


def exact_chain(client: Client) -> bool:
    """A chain whose frames are known to the byte."""
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
        made = looped(_frames(video), num_frames)
        return gray(made) if "gray" in chain else made

    size = video.shape[1], video.shape[2]
    return follow(client, Order("exact_chain", request, Wanted(num_frames, size), [video], frames))


def other_chain(client: Client) -> bool:
    """Any frame processors, perhaps at another size: only the shape is known."""
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
    return follow(client, Order("other_chain", request, Wanted(num_frames, size), [video]))


def own_videos(client: Client) -> bool:
    """Chunks with videos of their own, at odd offsets of a blob; the others loop the input, where there is one."""
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
    return follow(client, Order("own_videos", request, Wanted(num_frames, size), files, frames))


def _pack(client: Client, parts: dict[int, dict[str, Any]]) -> tuple[bytes, list[dict[str, Any]]]:
    """A blob with arrays at any offsets, and the specs of the chunks that they belong to."""
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


def probe_video(client: Client) -> bool:
    """Video mode: the probe gives its input back."""
    video = _input(client, "probe_video", PROBE_SIZE)
    if video is None:
        return True
    num_frames = client.random.randint(1, 40)
    request = {"pipeline_id": "probe", "prompt": "a cat", "num_frames": num_frames, "input_path": video.name}
    request |= {"noise_scale": client.random.random(), "manage_cache": client.random.random() < 0.5}

    def frames(_: list[int]) -> Frames:
        return looped(_frames(video), num_frames)

    return follow(client, Order("probe_video", request, Wanted(num_frames, PROBE_SIZE), [video], frames))


def _text(client: Client, prompt: str = "a cat") -> tuple[dict[str, Any], Wanted, list[int]]:
    """A request in text mode with seeds, prompts and transitions, what it comes to, and each chunk's seed."""
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
    return request, Wanted(num_frames, PROBE_SIZE), seeds


def _pattern_order(client: Client, kind: str, prompt: str = "a cat", **when: float) -> Order:
    request, wanted, seeds = _text(client, prompt)
    return Order(kind, request, wanted, (), lambda counts: probe_pattern(seeds, counts), **when)


def probe_text(client: Client) -> bool:
    """Text mode: the probe makes its pattern."""
    return follow(client, _pattern_order(client, "probe_text"))


def asleep(client: Client) -> bool:
    """Chunks that take their time."""
    return follow(client, _pattern_order(client, "asleep", f"!sleep {client.random.uniform(0.1, 0.8):.2f}"))


def cancelled(client: Client) -> bool:
    """A generation that is cancelled at a random moment."""
    prompt = f"!sleep {client.random.uniform(0.05, 0.6):.2f}"
    return follow(client, _pattern_order(client, "cancelled", prompt, cancel_after_s=client.random.uniform(0, 1.5)))


def left(client: Client) -> bool:
    """A generation whose client goes away at a random moment."""
    prompt = f"!sleep {client.random.uniform(0.3, 2):.2f}"
    return follow(client, _pattern_order(client, "left", prompt, leave_after_s=client.random.uniform(0, 1.2)))


def failing(client: Client) -> bool:
    """A model that fails."""
    prompt, code = client.random.choice(
        [("!raise", "model_error"), ("!error", "model_error"), ("!shape", "bad_model_output")]
    )
    num_frames = client.random.randint(1, 30)
    request = {"pipeline_id": "probe", "prompt": prompt, "num_frames": num_frames}
    return follow(client, Order("failing", request, Wanted(num_frames, PROBE_SIZE, frozenset({code}))))


def vace(client: Client) -> bool:
    """VACE frames and masks at odd offsets, key images and references; now and then with a NaN."""
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
        if asset is not None and not asset.must_be_gone(client.ttl_s) and client.random.random() < 0.4:
            spec["vace_ref_images"] = [asset.name, asset.name]
            files.append(asset)
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": num_frames, "chunk_specs": specs}
    request |= {"data_blob_path": uploaded.name, "seed": 7}
    codes = frozenset({"invalid_field"}) if broken else frozenset[str]()

    def pattern(counts: list[int]) -> Frames:
        return probe_pattern([7] * len(counts), counts)

    return follow(client, Order("vace", request, Wanted(num_frames, PROBE_SIZE, codes), files, pattern))


# -- Faults that a request provokes -------------------------------------------------------------------------


def provoke(client: Client, prompt: str, code: str, patience_s: float = 30.0) -> bool:
    """A generation whose model dies or hangs; tried until there is a place for it. False when there never was."""
    request = {"pipeline_id": "probe", "prompt": prompt, "num_frames": 20}
    order = Order(prompt, request, Wanted(20, PROBE_SIZE, frozenset({code})))
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if follow(client, order):
            return True
        time.sleep(client.random.uniform(0.05, 0.3))
    return False
