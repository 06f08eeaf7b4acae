"""Defaults that a load sets for later requests, and loads as existing clients of this API send them."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support import http
from tests.support.http import LOAD
from tests.support.recovery import PROBE, eventually
from tests.support.server import Frames, Frontend, frontend_on

ALICE, BOB = ({"Authorization": f"Bearer {name}-key"} for name in ("alice", "bob"))
STATUS = "/api/v1/pipeline/status"
SHORT = PROBE | {"num_frames": 9}
LARGE = {"height": 128, "width": 160}


@pytest.fixture(scope="module")
def loading(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A frontend with keys, which distinguish its clients."""
    with frontend_on(server, tmp_path_factory.mktemp("loading"), api_keys="alice:alice-key,bob:bob-key") as frontend:
        yield frontend


@pytest.fixture(autouse=True)
def no_defaults(loading: Frontend) -> Iterator[None]:
    """Each test begins and ends without defaults."""
    yield
    for headers in (ALICE, BOB):
        assert load(loading, headers, {"pipeline_ids": ["probe", "gray"]}).status_code == 200


def load(frontend: Frontend, headers: dict[str, str], body: dict[str, Any]) -> httpx.Response:
    return http.post(frontend.url + LOAD, json=body, headers=headers)


def load_probe(frontend: Frontend, load_params: Any, headers: dict[str, str] = ALICE) -> httpx.Response:
    return load(frontend, headers, {"pipeline_ids": ["probe"], "load_params": load_params})


def first_chunk(frontend: Frontend, headers: dict[str, str] = ALICE, **fields: Any) -> dict[str, Any]:
    """Run a generation; the parameters of its first chunk, as the probe received them."""
    before = len(frontend.probe_entries())
    answer = http.post(f"{frontend.url}/api/v1/generate", json=SHORT | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "event: complete" in answer.text
    parameters: dict[str, Any] = frontend.probe_entries()[before]["parameters"]
    return parameters


def shape_of(parameters: dict[str, Any]) -> tuple[int, int]:
    return parameters["height"], parameters["width"]


def test_load_params_are_defaults_of_later_requests_and_a_request_wins(loading: Frontend) -> None:
    loras = [{"path": "/models/lora/ink.safetensors", "scale": 0.5}]
    params = {**LARGE, "seed": 2**64 - 1, "vace_context_scale": 0.25, "loras": loras}
    assert load_probe(loading, params).json() == {"status": "loaded", "ignored": []}
    for _ in range(2):
        chunk = first_chunk(loading)
        assert shape_of(chunk) == (128, 160)
        assert chunk["seed"] == (2**64 - 1) % (2**63 - 2**20)
        assert chunk["vace_context_scale"] == 0.25
        assert chunk["lora_scales"] == {"ink": 0.5}
    own = first_chunk(loading, height=64, seed=7, vace_context_scale=1.0, lora_scales={"neon": 1})
    assert shape_of(own) == (64, 160)
    assert (own["seed"], own["vace_context_scale"], own["lora_scales"]) == (7, 1.0, {"neon": 1.0})
    assert first_chunk(loading, lora_scales={})["lora_scales"] == {}
    unset = first_chunk(loading, height=None, width="", seed=None, lora_scales=[])
    assert (shape_of(unset), unset["lora_scales"]) == ((128, 160), {"ink": 0.5})


def test_status_shows_the_loras_and_their_scales(loading: Frontend) -> None:
    params = {"loras": [{"path": "/models/lora/ink.safetensors", "scale": 0.5}], "vae_type": "wan"}
    assert load_probe(loading, params).json() == {"status": "loaded", "ignored": ["vae_type"]}
    assert http.get(loading.url + STATUS, headers=ALICE).json() == {
        "status": "loaded",
        "pipeline_id": "probe",
        "load_params": params,
        "loaded_lora_adapters": [{"path": "/models/lora/ink.safetensors", "scale": 0.5}, {"path": "neon", "scale": 0}],
        "error": None,
    }


@pytest.mark.parametrize("cleared_by", [{}, {"load_params": None}, {"load_params": {"seed": 5, "height": None}}])
def test_the_next_load_of_the_pipeline_clears_what_it_does_not_set(
    loading: Frontend, cleared_by: dict[str, Any]
) -> None:
    load_probe(loading, LARGE)
    assert load(loading, ALICE, {"pipeline_ids": ["gray"], "load_params": {"height": 80}}).status_code == 200
    assert shape_of(first_chunk(loading)) == (128, 160)  # loading another pipeline does not change this one
    load(loading, ALICE, {"pipeline_ids": ["probe"], **cleared_by})
    chunk = first_chunk(loading)
    assert (shape_of(chunk), chunk["seed"]) == ((64, 96), 5 if cleared_by.get("load_params") else 42)


def test_defaults_belong_to_one_client_and_one_pipeline(loading: Frontend) -> None:
    load_probe(loading, LARGE)
    assert shape_of(first_chunk(loading, BOB)) == (64, 96)
    load_probe(loading, {"width": 80}, BOB)
    assert (shape_of(first_chunk(loading, BOB)), shape_of(first_chunk(loading))) == ((64, 80), (128, 160))


def test_without_keys_all_callers_are_one_client(server: Frontend) -> None:
    try:
        assert load(server, {}, {"pipeline_ids": ["probe"], "load_params": LARGE}).status_code == 200
        assert shape_of(first_chunk(server, {"User-Agent": "another"})) == (128, 160)
    finally:
        load(server, {}, {"pipeline_ids": ["probe"]})
    assert shape_of(first_chunk(server, {})) == (64, 96)


def test_pipelines_have_load_params_of_their_own(loading: Frontend, clip: Frames) -> None:
    body = {
        "connection_id": None,
        "connection_info": {"region": "x", "retries": [1]},
        "user_id": "u",
        "node": None,
        "pipeline_ids": None,
        "load_params": {"height": 80},
        "pipelines": [
            {"node_id": "a", "pipeline_id": "probe", "load_params": LARGE | {"vace_enabled": False, "x": None}},
            {"node_id": 2, "pipeline_id": "gray", "load_params": {}},
            {"pipeline_id": "passthrough"},
        ],
    }
    assert load(loading, ALICE, body).json() == {"status": "loaded", "ignored": ["vace_enabled"]}
    assert shape_of(first_chunk(loading)) == (128, 160)
    assert http.get(loading.url + STATUS, headers=ALICE).json()["load_params"]["vace_enabled"] is False
    path = uploaded(loading, clip)
    for pipeline_id, height in (("gray", 160), ("passthrough", 80)):
        request = {"pipeline_id": pipeline_id, "prompt": "", "num_frames": 12, "input_path": path}
        answer = http.post(f"{loading.url}/api/v1/generate", json=request, headers=ALICE)
        assert f'"video_shape": [12, {height}, 288, 3]' in answer.text
    load(loading, ALICE, {"pipeline_ids": ["passthrough"]})


def uploaded(frontend: Frontend, video: Frames) -> str:
    sides = zip(("Frames", "Height", "Width", "Channels"), video.shape, strict=True)
    headers = ALICE | {f"X-Video-{side}": str(size) for side, size in sides}
    url = f"{frontend.url}/api/v1/batch/upload"
    return str(http.post(url, content=video.tobytes(), headers=headers).json()["input_path"])


@pytest.mark.parametrize(
    ("pipeline_id", "params", "field", "words"),
    [
        ("probe", {"height": 100}, "height", "100 is not a multiple of 16, try 96 or 112"),
        ("probe", {"width": 4096}, "width", "2048"),
        (
            "probe",
            {"loras": [{"path": "none"}]},
            "loras",
            "'none' is not a LoRA of this pipeline; probe has: ink, neon",
        ),
        ("probe", {"loras": [{"path": "ink"}, {"path": "x/ink.pt"}]}, "loras", "'x/ink.pt' names a LoRA twice"),
        ("probe", {"seed": 2**64}, "seed", str(2**64)),
        ("gray", {"vace_context_scale": 0.5}, "vace_context_scale", "gray does not support vace"),
        ("gray", {"loras": [{"path": "ink"}]}, "loras", "gray has: none"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_and_changes_nothing(
    loading: Frontend, pipeline_id: str, params: dict[str, Any], field: str, words: str
) -> None:
    load_probe(loading, LARGE)
    for body, where in (
        ({"pipeline_ids": [pipeline_id], "load_params": params}, f"load_params.{field}"),
        (
            {"pipelines": [{"pipeline_id": "probe"}, {"pipeline_id": pipeline_id, "load_params": params}]}
            if pipeline_id != "probe"
            else {"pipelines": [{"pipeline_id": "gray"}, {"pipeline_id": "probe", "load_params": params}]},
            f"pipelines[1].load_params.{field}",
        ),
    ):
        answer = load(loading, ALICE, body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["field"] == where
        assert answer.json()["detail"].startswith(f"{where}: ")
        assert words in answer.json()["detail"]
    assert shape_of(first_chunk(loading)) == (128, 160)


def test_what_has_no_effect_is_named(loading: Frontend) -> None:
    lora = {"path": "ink", "merge_mode": "permanent_merge", "id": None}
    params = {"vae_type": "wan", "quantization": None, "vace_enabled": True, "loras": [lora], "a": "", "b": []}
    assert load_probe(loading, params).json()["ignored"] == ["loras.merge_mode", "vace_enabled", "vae_type"]
    body = {"pipeline_ids": ["gray"], "load_params": {"seed": 5, "height": 80}}
    assert load(loading, ALICE, body).json()["ignored"] == ["seed"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"pipeline_ids": ["nope"]}, 404, "pipeline_ids"),
        ({"pipelines": [{"pipeline_id": "probe"}, {"pipeline_id": "nope"}]}, 404, "pipelines[1].pipeline_id"),
        ({"pipeline_ids": [], "pipelines": []}, 422, "pipeline_ids"),
        ({"pipeline_ids": ["probe"], "pipelines": [{"pipeline_id": "probe"}]}, 422, "pipelines"),
    ],
)
def test_a_load_of_nothing_is_refused(loading: Frontend, body: dict[str, Any], status: int, field: str) -> None:
    answer = load(loading, ALICE, body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


def test_an_unload_ends_the_defaults(victim: Frontend) -> None:
    """Also those that cannot be met, which only show once the pipeline is loaded."""

    def unload() -> None:
        with victim.triton_client() as client:
            client.unload_model("probe")
        eventually(lambda: not loaded())

    def loaded() -> bool:
        answer = http.get(f"{victim.url}/api/v1/pipelines").json()
        return {pipeline["id"]: bool(pipeline["loaded"]) for pipeline in answer["pipelines"]}["probe"]

    def status() -> dict[str, Any]:
        found: dict[str, Any] = http.get(victim.url + STATUS).json()
        return found

    assert load_probe(victim, LARGE, {}).json()["status"] == "loaded"
    assert shape_of(first_chunk(victim, {})) == (128, 160)
    unload()
    assert shape_of(first_chunk(victim, {})) == (64, 96)

    unload()
    assert load_probe(victim, LARGE, {}).json() == {"status": "loading", "ignored": []}
    assert shape_of(first_chunk(victim, {})) == (128, 160)  # whether or not the load is done by then
    eventually(lambda: status()["status"] == "loaded")
    assert shape_of(first_chunk(victim, {})) == (128, 160)

    unload()
    assert load_probe(victim, {"height": 100}, {}).json() == {"status": "loading", "ignored": []}
    eventually(lambda: status()["status"] == "error")
    assert status()["error"] == "load_params.height: 100 is not a multiple of 16, try 96 or 112"
    refused = victim.post(**SHORT)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "height")
    assert load_probe(victim, None, {}).json()["status"] == "loaded"
    assert shape_of(first_chunk(victim, {})) == (64, 96)
