"""The endpoints under /v1, as the clients that exist use them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from filmstrip.video import read_frames, write_video
from tests.support import http
from tests.support.raw_client import RawClient, raw_request
from tests.support.recovery import eventually
from tests.support.server import ROOT, Frontend, frontend_on

KEYS = {"alice": "alice-key", "bob": "bob-key"}
CLIENTS = Path(sys.prefix) / "clients"
OLD_CLIENTS = Path(sys.prefix) / "clients-openai-2.2"
SCRIPTS = ROOT / "tests" / "support" / "clients"


class Videos:
    """The videos of one client."""

    def __init__(self, server: Frontend, key: str) -> None:
        self.server = server
        self.base_url = f"{server.url}/v1"
        self._headers = {"Authorization": f"Bearer {key}"}

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return http.request(method, self.base_url + path, headers=self._headers, **options)

    def create(self, **fields: Any) -> dict[str, Any]:
        answer = self.request("POST", "/videos", json={"model": "probe", "prompt": "x"} | fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def error(self, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
        """The error of a request that must be refused."""
        answer = self.request(method, path, **options)
        assert answer.status_code == status, answer.text
        body: dict[str, Any] = answer.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return dict(body["error"])

    def generation(self, id: str) -> dict[str, Any]:
        """The video as the resource that it is."""
        return dict(http.get(f"{self.server.url}/api/v1/generations/{id}", headers=self._headers).json())

    def completed(self, id: str) -> dict[str, Any]:
        """The video at its end, which must be a good one."""
        eventually(lambda: self.request("GET", f"/videos/{id}").json()["status"] not in ("queued", "in_progress"))
        video: dict[str, Any] = self.request("GET", f"/videos/{id}").json()
        assert video["status"] == "completed", video
        return video


@pytest.fixture(scope="module")
def keyed(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    keys = ",".join(f"{client}:{key}" for client, key in KEYS.items())
    with frontend_on(server, tmp_path_factory.mktemp("keyed"), api_keys=keys, reattach_s=2) as frontend:
        frontend.wait_healthy()
        yield frontend


@pytest.fixture
def alice(keyed: Frontend) -> Iterator[Videos]:
    videos = Videos(keyed, KEYS["alice"])
    yield videos
    for video in videos.request("GET", "/videos?limit=100").json()["data"]:
        videos.request("DELETE", f"/videos/{video['id']}")


@pytest.fixture
def bob(keyed: Frontend) -> Videos:
    return Videos(keyed, KEYS["bob"])


def run_client(script: str, folders: list[Path], *arguments: str) -> dict[str, Any]:
    for folder in folders:
        assert folder.is_dir(), f"{folder} is missing: run `make test-setup`"
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *arguments],
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "no_proxy": "*"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("folders", [[CLIENTS], [OLD_CLIENTS, CLIENTS]], ids=["newest", "2.2.0"])
def test_the_openai_package(alice: Videos, folders: list[Path], tmp_path: Path, subtests: pytest.Subtests) -> None:
    found = run_client("openai_client.py", folders, alice.base_url, KEYS["alice"], str(tmp_path))
    assert (found["version"] == "2.2.0") == (OLD_CLIENTS in folders)
    with subtests.test("models"):
        assert {"probe", "passthrough"} <= set(found["models"])
    with subtests.test("video"):
        video = found["video"]
        assert (video["status"], video["progress"], video["model"]) == ("completed", 100, "probe")
        assert (video["seconds"], video["size"], video["prompt"]) == ("4", "96x64", "a cat")
        assert abs(video["completed_at"] - time.time()) < 120
        assert video["expires_at"] > video["completed_at"]
        assert np.stack(list(read_frames(tmp_path / "video.mp4"))).shape == (64, 64, 96, 3)
    with (
        subtests.test("images"),
        Image.open(tmp_path / "thumbnail.png") as thumbnail,
        Image.open(tmp_path / "spritesheet.png") as sheet,
    ):
        assert thumbnail.size == (96, 64)
        assert sheet.width * sheet.height > 24 * 96 * 64
    with subtests.test("fields of a GenerateRequest"):
        request = alice.generation(found["extra"]["id"])["request"]
        assert (request["num_frames"], request["seed"]) == (21, 7)
        assert (request["denoising_steps"], request["lora_scales"]) == ([1000, 500], {"ink": 0.5})
        assert [(spec["chunk"], spec["text"]) for spec in request["chunk_specs"]] == [(0, "x"), (1, "7")]
    with subtests.test("references"):
        assert [found[name]["status"] for name in ("with_image", "with_video")] == ["completed"] * 2
        assert found["with_video"]["seconds"] == "4"
        request = alice.generation(found["with_video"]["id"])["request"]
        assert request["input_path"].startswith("video-")
    with subtests.test("lists"):
        ids = [found[name]["id"] for name in ("video", "extra", "with_image", "with_video")]
        assert (found["ascending"], found["pages"]) == (ids, ids[::-1])
    for name, kind, status, param in (
        ("early", "ConflictError", 409, "id"),
        ("deleted", "NotFoundError", 404, None),
        ("model", "NotFoundError", 404, "model"),
        ("size", "UnprocessableEntityError", 422, "size"),
        ("knob", "UnprocessableEntityError", 422, "guidance_scale"),
        ("remix", "NotFoundError", 404, None),
        ("key", "AuthenticationError", 401, None),
    ):
        with subtests.test(name):
            refusal = found["refusals"][name]
            assert (refusal["kind"], refusal["status"], refusal["body"]["param"]) == (kind, status, param)


def test_litellm(alice: Videos) -> None:
    found = run_client("litellm_client.py", [CLIENTS], alice.base_url, KEYS["alice"])
    assert found == {"status": "completed", "size": "96x64", "seconds": "2", "start": "ftyp"}


def curl(videos: Videos, path: str, *arguments: str) -> bytes:
    command = ["curl", "-sS", "--noproxy", "*", "-H", f"Authorization: Bearer {KEYS['alice']}", *arguments]
    return subprocess.run([*command, videos.base_url + path], check=True, capture_output=True, timeout=60).stdout


def test_forms_of_curl(alice: Videos, tmp_path: Path) -> None:
    Image.new("RGB", (500, 30), "red").save(tmp_path / "wide.png")
    fields = ["-F", "model=probe", "-F", "prompt=[a cat]", "-F", "seconds=2", "-F", "fps=8", "-F", "lora_scales[ink]=1"]
    video = json.loads(curl(alice, "/videos", *fields, "-F", f"input_reference=@{tmp_path / 'wide.png'}"))
    assert (video["prompt"], video["seconds"]) == ("[a cat]", "2")
    alice.completed(video["id"])
    (tmp_path / "video.mp4").write_bytes(curl(alice, f"/videos/{video['id']}/content"))
    with av.open(tmp_path / "video.mp4") as file:
        assert (file.streams.video[0].average_rate, file.streams.video[0].frames) == (8, 16)
    refused = json.loads(curl(alice, "/videos", *fields, "-F", "num_inference_steps=40", "-F", "guidance_scale=5"))
    assert refused["error"]["param"] in ("num_inference_steps", "guidance_scale")


def test_a_reference_lives_as_long_as_its_video(alice: Videos, tmp_path: Path, subtests: pytest.Subtests) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(1000))
    (tmp_path / "empty").touch()
    stored = alice.server.stored("videos", "assets")
    with subtests.test("used"):
        video = json.loads(
            curl(
                alice, "/videos", "-F", "model=probe", "-F", "prompt=x", "-F", f"input_reference=@{tmp_path / 'a.png'}"
            )
        )
        alice.completed(video["id"])
        eventually(lambda: alice.server.stored("videos", "assets") == stored)
    for name, field in (
        ("broken.png", "input_reference"),
        ("broken.mp4", "input_reference"),
        ("empty", "input_reference"),
    ):
        with subtests.test(name), (tmp_path / name).open("rb") as file:
            error = alice.error(
                "POST", "/videos", 400, data={"model": "probe", "prompt": "x"}, files={"input_reference": file}
            )
            assert error["param"] == field
    for fields, param in (
        ({"model": "passthrough", "prompt": "x"}, "input_reference"),
        ({"model": "probe", "prompt": "x", "size": "4096x4096"}, "size"),
        ({"model": "probe", "prompt": "x", "seed": "x"}, "seed"),
        ({"model": "probe"}, "prompt"),
    ):
        with subtests.test(str(fields)), (tmp_path / "a.png").open("rb") as file:
            assert alice.error("POST", "/videos", 422, data=fields, files={"input_reference": file})["param"] == param
    assert alice.server.stored("videos", "assets") == stored


def test_a_named_input_video_gives_length_and_rate(alice: Videos, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", iter(np.zeros((24, 64, 96, 3), np.uint8)), fps=24)
    headers = {"Authorization": f"Bearer {KEYS['alice']}", "Content-Type": "video/mp4"}
    url = f"{alice.server.url}/api/v1/generate/upload"
    name = http.post(url, content=(tmp_path / "a.mp4").read_bytes(), headers=headers).json()["input_path"]
    for fields, num_frames, seconds in (
        ({"input_reference": name}, 24, "1"),
        ({"input_reference": name, "seconds": "0.5"}, 12, "0.5"),
        ({"input_path": name, "num_frames": 12, "fps": 12}, 12, "1"),
    ):
        video = alice.create(**fields)
        assert (alice.generation(video["id"])["num_frames"], video["seconds"]) == (num_frames, seconds)
        alice.completed(video["id"])
    assert alice.error("POST", "/videos", 404, json={"model": "probe", "prompt": "x", "input_reference": name + "0"})


def test_a_form_with_endless_json_holds_nobody_up(alice: Videos) -> None:
    fields = {"model": "probe", "prompt": "x", "chunk_specs": "[" + "[]," * 2_000_000 + "[]]"}
    assert (
        "values"
        in alice.error("POST", "/videos", 422, files={name: (None, text) for name, text in fields.items()})["message"]
    )


def test_a_synchronous_video(alice: Videos) -> None:
    answer = alice.request("POST", "/videos/sync", json={"model": "probe", "prompt": "x", "num_frames": 21})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
    assert answer.content[4:8] == b"ftyp"
    assert int(answer.headers["content-length"]) == len(answer.content)
    name = answer.headers["x-generation-id"]
    assert alice.request("GET", f"/videos/{name}/content").content == answer.content


def test_a_synchronous_video_that_fails(alice: Videos) -> None:
    body = {"model": "probe", "prompt": "!raise", "num_frames": 21}
    assert alice.error("POST", "/videos/sync", 500, json=body)["code"] == "model_error"
    assert alice.error("POST", "/videos/sync", 422, json=body | {"seed": "x"})["param"] == "seed"


def test_a_client_that_leaves_ends_its_synchronous_video(alice: Videos) -> None:
    body = json.dumps({"model": "probe", "prompt": "!sleep 0.3", "num_frames": 1000})
    with RawClient(alice.server.url) as client:
        client.send(raw_request("POST /v1/videos/sync", f"Authorization: Bearer {KEYS['alice']}", body=body.encode()))
        eventually(lambda: [video["status"] for video in _listed(alice)] == ["in_progress"])
    eventually(lambda: [video["status"] for video in _listed(alice)] == ["failed"])
    assert _listed(alice)[0]["error"]["code"] == "cancelled"


def _listed(videos: Videos, query: str = "") -> list[dict[str, Any]]:
    return list(videos.request("GET", f"/videos{query}").json()["data"])


def test_a_client_sees_its_own_videos_whatever_door_they_came_by(alice: Videos, bob: Videos) -> None:
    own = alice.create(num_frames=9)["id"]
    alice.completed(own)
    url = f"{alice.server.url}/api/v1/generations/by-the-resource"
    headers = {"Authorization": f"Bearer {KEYS['alice']}"}
    http.put(url, json={"pipeline_id": "probe", "prompt": "y", "num_frames": 9}, headers=headers)
    alice.completed("by-the-resource")
    assert [video["id"] for video in _listed(alice)] == ["by-the-resource", own]
    assert [video["id"] for video in _listed(alice, "?order=asc&limit=1")] == [own]
    assert [video["id"] for video in _listed(alice, f"?order=asc&after={own}")] == ["by-the-resource"]
    assert _listed(bob) == []
    for path in (f"/videos/{own}", f"/videos/{own}/content"):
        assert bob.error("GET", path, 404)["code"] == "not_found"
    bob.error("DELETE", f"/videos/{own}", 404)
    for query in ("limit=0", "limit=101", "limit=x", "order=up"):
        alice.error("GET", f"/videos?{query}", 422)


def test_a_video_under_way(alice: Videos) -> None:
    first, second = (alice.create(prompt="!sleep 0.3", num_frames=400)["id"] for _ in range(2))
    eventually(lambda: alice.request("GET", f"/videos/{first}").json()["progress"] > 0)
    answer = alice.request("GET", f"/videos/{first}")
    assert answer.json()["status"] == "in_progress"
    assert 250 <= int(answer.headers["openai-poll-after-ms"]) <= 5000
    assert alice.request("GET", f"/videos/{second}").json()["status"] == "queued"
    assert alice.error("GET", f"/videos/{first}/content?variant=thumbnail", 409)["code"] == "not_ready"
    assert alice.error("GET", f"/videos/{first}/content?variant=x", 422)["param"] == "variant"
    assert alice.request("DELETE", f"/videos/{first}").json() == {
        "id": first,
        "object": "video.deleted",
        "deleted": True,
    }
    alice.request("DELETE", f"/videos/{second}")


def test_models(alice: Videos) -> None:
    listed = alice.request("GET", "/models").json()
    assert listed["object"] == "list"
    assert {"id": "probe", "object": "model", "owned_by": "filmstrip"}.items() <= next(
        model.items() for model in listed["data"] if model["id"] == "probe"
    )
    assert alice.request("GET", "/models/probe").json()["id"] == "probe"
    assert alice.error("GET", "/models/sora-2", 404)["param"] == "model"
