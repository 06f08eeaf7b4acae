"""Requests that must be refused, and with what status."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.soak.client import SoakClient
from tests.soak.server import ASSET_BYTES, JSON_BYTES, UPLOAD_BYTES
from tests.support.http import ASSETS, GENERATE, UPLOAD, UPLOAD_DATA

_PLANNED = frozenset({422, 409})  # only checked while the slot is free


@dataclass(frozen=True)
class Refusal:
    """An invalid request, and the statuses that it may get."""

    method: str
    path: str
    statuses: frozenset[int]
    request: dict[str, Any] = field(default_factory=dict)


def _generate(statuses: set[int] | frozenset[int], **fields: object) -> Refusal:
    request = {"pipeline_id": "probe", "prompt": "x", "num_frames": 12, **fields}
    return Refusal("POST", GENERATE, frozenset(statuses), {"json": request})


def _spec(statuses: set[int] | frozenset[int], **fields: object) -> Refusal:
    return _generate(statuses, chunk_specs=[{"chunk": 0, **fields}])


def _raw(statuses: set[int], body: bytes, path: str = GENERATE, **headers: str) -> Refusal:
    return Refusal("POST", path, frozenset(statuses), {"content": body, "headers": headers})


def _video(statuses: set[int], body: bytes, changed: Mapping[str, str | None] | None = None) -> Refusal:
    shape = {"Frames": "1", "Height": "2", "Width": "3", **(changed or {})}
    headers = {
        f"X-Video-{side}".encode(): value.encode("latin-1") for side, value in shape.items() if value is not None
    }
    return Refusal("POST", UPLOAD, frozenset(statuses), {"content": body, "headers": headers})


def _bad_header(client: SoakClient) -> Refusal:
    side = client.random.choice(["Frames", "Height", "Width", "Channels"])
    bad = ("abc", "-1", "0", "4294967296", "1.5", "", "1 2", "1e3", "9" * 300, "0x10", "+1", "\xb2")
    return _video({400}, b"x", {side: client.random.choice(bad)})


def _bad_value(client: SoakClient) -> Refusal:
    choices: list[dict[str, object]] = [
        {"num_frames": 0},
        {"num_frames": 10_001},
        {"num_frames": "12"},
        {"num_frames": 1.5},
        {"height": 1},
        {"height": 4096},
        {"seed": -2},
        {"seed": 2**64},
        {"noise_scale": 1.1},
        {"prompt": None},
        {"prompt": []},
        {"chunk_specs": [{"chunk": 0, "seed": -1}]},
        {"prompt": [{"text": "a", "weight": 0}]},
        {"prompt": [{"text": "a", "weight": 101}]},
        {"prompt": "x" * 100_001},
        {"denoising_steps": [1, 2]},
        {"kv_cache_attention_bias": 0},
        {"vace_context_scale": 3},
        {"chunk_specs": {}},
        {"chunk_specs": [{"chunk": -1}]},
        {"chunk_specs": [{"chunk": 0, "x": 1}]},
        {"unknown": 1},
        {"pipeline_id": 7},
    ]
    return _generate({422}, **client.random.choice(choices))


def _bad_plan(client: SoakClient) -> Refusal:
    array = {"vace_frames_shape": [1, 3, 2, 64, 96]}
    choices: list[dict[str, object]] = [
        {"height": 65},
        {"lora_scales": {"none": 1}},
        {"pipeline_id": "gray"},
        {"pipeline_id": "gray", "vace_context_scale": 0.5},
        {"post_processor_id": "probe"},
        {"pre_processor_id": "gray"},
        {"vace_use_input_video": True},
        {"chunk_specs": [{"chunk": 5}]},
        {"chunk_specs": [{"chunk": 0}, {"chunk": 0}]},
        {"chunk_specs": [{"chunk": 0, **array}]},
        {"chunk_specs": [{"chunk": 0, **array, "vace_frames_offset": 0}]},
        {"chunk_specs": [{"chunk": 0, "text": "a", "prompts": [{"text": "b", "weight": 1}]}]},
    ]
    return _generate(_PLANNED, **client.random.choice(choices))


def _bad_json(client: SoakClient) -> Refusal:
    bodies = [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2",
        b'{"a": NaN}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"\x00",
        b"nope",
        b'"' * 999,
    ]
    return _raw({400, 422}, client.random.choice(bodies))


def _not_a_number(client: SoakClient) -> Refusal:
    name = client.random.choice(["noise_scale", "vace_context_scale", "kv_cache_attention_bias"])
    value = client.random.choice([math.nan, math.inf, -math.inf])
    body = json.dumps({"pipeline_id": "probe", "prompt": "x", name: value})
    return _raw({400, 422}, body.encode())


def _deep_json(client: SoakClient) -> Refusal:
    depth = client.random.choice([50, 1000, 20_000, 60_000])
    opening, closing = client.random.choice([(b"[", b"]"), (b'{"a":', b"}")])
    body = opening * depth + (b"1" if opening != b"[" else b"") + closing * depth
    path = client.random.choice([GENERATE, "/api/v1/pipeline/load"])
    return _raw({400, 413, 422}, body, path)


def _oversized(client: SoakClient) -> Refusal:
    max_count = "4294967295"
    unknown_length = iter([bytes(UPLOAD_BYTES // 4)] * 5)
    choices = [
        _raw({413}, bytes(UPLOAD_BYTES + 1), UPLOAD_DATA),
        _raw({413}, bytes(ASSET_BYTES + 1), ASSETS),
        _video({413}, b"x", {"Frames": max_count, "Height": max_count, "Width": max_count}),
        Refusal("POST", UPLOAD_DATA, frozenset({413, 507}), {"content": unknown_length}),
        _raw({413}, b" " * (JSON_BYTES + 1)),
    ]
    return client.random.choice(choices)


def _wrong_place(client: SoakClient) -> Refusal:
    choices = [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/generate/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/docs/../app.py", 404),
        ("GET", "/api/v1/generate/download?path=../../etc/passwd", 404),
        ("GET", "/api/v1/generate/download?path=/etc/passwd", 404),
        ("GET", "/api/v1/generate/download?path=output-" + "0" * 32, 404),
        ("GET", "/api/v1/generate/download?path=" + "a" * 3000, 404),
        ("GET", "/api/v1/generate/download?path=%00", 404),
        ("GET", "/api/v1/generate/download", 422),
        ("GET", "/api/v1/generate", 405),
        ("DELETE", "/api/v1/generate/upload", 405),
        ("PUT", "/health", 405),
        ("POST", "/api/v1/pipelines", 405),
        ("PATCH", "/api/v1/generate/cancel", 405),
        ("OPTIONS", "/api/v1/generate", 405),
    ]
    method, path, status = client.random.choice(choices)
    return Refusal(method, path, frozenset({status}))


def _unknown_name(client: SoakClient) -> Refusal:
    uploaded = client.any_of(client.videos)
    video = uploaded.name if uploaded else "video-" + "0" * 32
    choices: list[dict[str, object]] = [
        {"pipeline_id": "no-such"},
        {"pipeline_id": "../probe"},
        {"post_processor_id": "no-such"},
        {"input_path": "/etc/passwd"},
        {"input_path": "blob-" + "0" * 32},
        {"data_blob_path": video},
        {"chunk_specs": [{"chunk": 0, "first_frame_image": "asset-" + "0" * 32}]},
        {"chunk_specs": [{"chunk": 0, "first_frame_image": video}]},
    ]
    return _generate({404, 409, 422}, **client.random.choice(choices))


def _bad_range(client: SoakClient) -> Refusal | None:
    output = client.any_of(client.outputs)
    if output is None:
        return None
    headers = {"Range": "bytes=99999999-"}
    request = {"params": {"path": output.name}, "headers": headers}
    return Refusal("GET", "/api/v1/generate/download", frozenset({416, 404}), request)


REFUSALS: dict[str, Callable[[SoakClient], Refusal | None]] = {
    "bad_header": _bad_header,
    "missing_header": lambda client: _video({400}, b"x", {client.random.choice(["Frames", "Width"]): None}),
    "wrong_size": lambda client: _video({400, 507}, client.random.randbytes(client.random.choice([0, 17, 19]))),
    "empty_blob": lambda client: _raw({400, 507}, b"", client.random.choice([UPLOAD_DATA, ASSETS])),
    "no_image": lambda client: _raw({400, 507}, client.random.choice([b"\x89PNG\r\n\x1a\n", b"GIF89a", b"x"]), ASSETS),
    "bad_value": _bad_value,
    "bad_plan": _bad_plan,
    "bad_json": _bad_json,
    "not_a_number": _not_a_number,
    "deep_json": _deep_json,
    "oversized": _oversized,
    "wrong_place": _wrong_place,
    "unknown_name": _unknown_name,
    "unknown_load": lambda _: Refusal(
        "POST", "/api/v1/pipeline/load", frozenset({404}), {"json": {"pipeline_ids": ["no-such"]}}
    ),
    "bad_data_url": lambda client: _spec(
        {409, 422, 400}, first_frame_image=client.random.choice(["data:image/png;base64,AAAA", "data:,x", "data:"])
    ),
    "bad_range": _bad_range,
}


def refused(client: SoakClient, kind: str) -> bool:
    """Send a request that must be refused; False if it was not checked because another generation runs."""
    refusal = REFUSALS[kind](client)
    if refusal is None:
        return False
    answer = client.send(kind, refusal.method, refusal.path, refusal.statuses, **refusal.request)
    return answer is None or answer.status_code != 409
