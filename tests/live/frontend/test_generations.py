"""The generation as a resource: accepted under a name, followed, read, listed, cancelled and deleted."""

import base64
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import http
from tests.support.generations import EVENTS, LAST, Generations
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, assert_recovers, assert_serves, eventually, is_generating, noise
from tests.support.server import Frontend, frontend_on

SHORT = PROBE | {"num_frames": 9}
SLOW = PROBE | {"prompt": "!sleep 0.4"}
SLEEPER = PROBE | {"prompt": "!sleep 60"}
PIXEL = (Path(__file__).parents[2] / "support" / "pixel.png").read_bytes()


@pytest.fixture
def own(server: Frontend) -> Iterator[Generations]:
    """The shared server, with no generation before the test and none after it."""
    own = Generations(server)

    def clear() -> None:
        while page := own.page(limit=100)["generations"]:
            for found in page:
                own.delete(found["id"])
        server.wait_idle(30)

    clear()
    yield own
    clear()


# -- Accepting ----------------------------------------------------------------------------------------------------


def test_a_generation_has_the_name_that_its_client_gives_it(own: Generations, server: Frontend) -> None:
    accepted = own.start("my-cat", PROBE | {"seed": 5})
    assert {"id": "my-cat", "num_frames": 33, "total_chunks": 3, "seed": 5}.items() <= accepted.items()
    assert accepted["state"] in ("running", "complete")
    assert accepted["request"] == PROBE | {"seed": 5}
    events = own.events("my-cat")
    assert [event.name for event in events] == ["progress"] * 3 + ["complete"]
    assert [event.id for event in events] == [1, 2, 3, 4]
    ended = own.get("my-cat")
    expected = {"state": "complete", "chunk": 3, "frames": 33, "position": None, "error": None, "eta_s": None}
    assert expected.items() <= ended.items()
    assert ended["video_shape"] == [33, 64, 96, 3]
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"] < ended["expires_at"]
    assert events[-1].data["output_path"] == ended["output_path"]
    made = server.download(ended["output_path"])
    assert np.array_equal(made, server.generate_frames(**PROBE, seed=5))
    for name, path in ended["links"].items():
        method = "POST" if name == "cancel" else "GET"
        assert http.request(method, server.url + path).status_code == 200


def test_the_same_request_again_is_the_same_generation(own: Generations) -> None:
    own.start("a", SHORT)
    again = own.put("a", {"num_frames": 9, "prompt": SHORT["prompt"], "pipeline_id": "probe", "seed": None})
    assert (again.status_code, again.json()["id"]) == (200, "a")
    other = own.put("a", SHORT | {"seed": 7})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "id_taken")
    own.wait_ended("a")
    assert own.put("a", SHORT | {"on_disconnect": "cancel"}).status_code == 200  # only the first one's counts
    assert len(own.page()["generations"]) == 1


def test_a_random_seed_is_drawn_once(own: Generations) -> None:
    first = own.start("r", SHORT | {"seed": -1})
    again = own.put("r", SHORT | {"seed": -1})
    assert (again.status_code, again.json()["seed"]) == (200, first["seed"])
    assert first["request"]["seed"] == -1
    assert own.events("r")[-1].data["seed"] == first["seed"]


def test_a_key_makes_a_post_repeatable(own: Generations) -> None:
    first = own.post(SHORT, **{"Idempotency-Key": "order 66"})
    again = own.post(SHORT, **{"Idempotency-Key": "order 66"})
    other = own.post(SHORT, **{"Idempotency-Key": "order 67"})
    assert [answer.status_code for answer in (first, again, other)] == [202, 200, 202]
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert len(first.json()["id"]) == 32
    conflict = own.post(SHORT | {"seed": 3}, **{"Idempotency-Key": "order 66"})
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "id_taken")
    for key in ("", "x" * 256, "caf\u00e9"):
        answer = own.request("POST", json=SHORT, headers={"Idempotency-Key": key.encode()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_header")
    own.wait_ended(first.json()["id"])
    assert own.delete(first.json()["id"]) == 204
    assert own.post(SHORT | {"seed": 3}, **{"Idempotency-Key": "order 66"}).status_code == 202


def test_requests_at_the_same_time_are_one_generation(own: Generations) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(own.put("twin", SLOW).status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] * 7 + [202]
    assert len(own.page()["generations"]) == 1


def test_what_can_be_refused_is_refused_at_once(own: Generations, server: Frontend) -> None:
    own.start("runs", SLEEPER)
    assets = server.stored("assets")
    url = "data:image/png;base64,AAAA"
    cases = [
        (SHORT | {"pipeline_id": "nothing"}, 404, "unknown_pipeline"),
        (SHORT | {"num_frames": 0}, 422, "invalid_field"),
        (SHORT | {"input_path": "video-" + "0" * 32}, 404, "unknown_path"),
        (SHORT | {"on_disconnect": "explode"}, 422, "invalid_field"),
        (SHORT | {"previews": {"every": 0}}, 422, "invalid_field"),
        (SHORT | {"chunk_specs": [{"chunk": 0, "first_frame_image": url}]}, 422, "invalid_field"),
        (SHORT | {"num_frames": 10_000, "height": 1024, "width": 2048}, 507, "storage_full"),
    ]
    for request, status, code in cases:
        answer = own.put("refused", request)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), request
        if status != 507:
            classic = server.post(**{name: value for name, value in request.items() if name != "on_disconnect"})
            assert classic.status_code in (409, status)
    assert [found["id"] for found in own.page()["generations"]] == ["runs"]
    for name in ("", "x" * 65, "a.b", "a%2Fb", "\u00e9"):
        assert own.request("PUT", f"/{name}", json=SHORT).status_code in (404, 405, 422)
    assert server.stored("assets") == assets


def test_generate_does_not_know_the_fields_of_the_resource(server: Frontend) -> None:
    for field in ({"on_disconnect": "continue"}, {"previews": {"every": 1}}):
        answer = server.post(**SHORT, **field)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, next(iter(field)))


def test_a_put_can_stream_and_so_can_one_that_attaches(own: Generations) -> None:
    with own.stream("PUT", "/s", json=SLOW) as first, own.stream("PUT", "/s", json=SLOW) as second:
        assert [event.name for event in first] == [event.name for event in second] == ["progress"] * 3 + ["complete"]
    assert own.put("s", SLOW, Accept="application/json, text/event-stream;q=0.5").headers["Content-Type"] != EVENTS


def test_data_urls_become_assets_while_the_generation_lives(own: Generations, server: Frontend) -> None:
    url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    specs = [{"chunk": 0, "vace_ref_images": [url, url]}]
    own.start("runs", SLEEPER)
    others = server.stored("assets")
    waits = own.start("waits", SHORT | {"chunk_specs": specs})
    (name,) = set(waits["request"]["chunk_specs"][0]["vace_ref_images"])
    assert server.stored("assets") == sorted([*others, f"assets/{name}"])
    assert http.delete(f"{server.url}/api/v1/files/{name}").status_code == 409
    assert own.put("waits", SHORT | {"chunk_specs": specs}).status_code == 200
    own.delete("runs")
    assert own.wait_ended("waits")["state"] == "complete"
    eventually(lambda: server.stored("assets") == others)


# -- Following ----------------------------------------------------------------------------------------------------


def test_a_follower_reconnects_a_hundred_times_and_misses_nothing(own: Generations) -> None:
    chunks = [{"chunk": number, "reset_cache": True} for number in range(60)]
    own.start("long", PROBE | {"prompt": "!sleep 0.02", "num_frames": 9 * 60, "chunk_specs": chunks})
    seen: list[tuple[int, str]] = []
    for attempt in range(100):
        headers = {"Last-Event-ID": str(seen[-1][0])} if seen else {}
        if attempt % 2 and seen:
            headers = {}
        path = f"/long/events?after={seen[-1][0]}" if attempt % 2 and seen else "/long/events"
        with own.stream("GET", path, headers=headers) as events:
            event = next(events, None)
            if event is not None:
                seen.append((event.id, event.name))
    if seen[-1][1] not in LAST:
        seen += [(event.id, event.name) for event in own.events("long", after=seen[-1][0])]
    assert [number for number, _ in seen] == list(range(1, 62))
    assert [name for _, name in seen] == ["progress"] * 60 + ["complete"]
    assert [(event.id, event.name) for event in own.events("long")] == seen


def test_followers_that_do_not_read_hold_nobody_up(own: Generations, server: Frontend) -> None:
    chunks = [{"chunk": number, "reset_cache": True} for number in range(300)]
    with RawClient(server.url, small_buffers=True) as stalled:
        own.start("many", PROBE | {"num_frames": 300 * 9, "chunk_specs": chunks})
        stalled.send_head("GET", "/api/v1/generations/many/events")
        assert len(own.events("many")) == 301
        assert not is_generating(server)
        assert len(list(stalled.read_events())) == 301


def test_the_number_of_the_last_event_must_be_a_number(own: Generations) -> None:
    own.start("n", SHORT)
    own.wait_ended("n")
    assert own.request("GET", "/n/events", headers={"Last-Event-ID": "x"}).json()["error"]["code"] == "bad_header"
    assert own.request("GET", "/n/events?after=-1").json()["error"]["code"] == "invalid_field"
    assert own.events("n", after=10**9) == []
    assert own.request("HEAD", "/n/events").status_code == 200


# -- Disconnecting ------------------------------------------------------------------------------------------------


def test_a_generation_goes_on_without_its_client(own: Generations) -> None:
    with own.stream("PUT", "/alone", json=SLOW) as events:
        next(events)
    assert own.wait_ended("alone")["state"] == "complete"


def test_one_that_is_to_be_cancelled_with_its_client_is_given_time(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, reattach_s=1.5) as frontend:
        own = Generations(frontend)
        request = PROBE | {"prompt": "!sleep 0.2", "num_frames": 9_000, "on_disconnect": "cancel"}
        with own.stream("PUT", "/held", json=request) as events:
            last = next(events)
        with own.stream("GET", "/held/events", headers={"Last-Event-ID": str(last.id)}) as events:
            assert [next(events).id for _ in range(12)] == list(range(last.id + 1, last.id + 13))  # longer than 1.5 s
        ended = own.wait_ended("held")
        assert ended["state"] == "cancelled"
        assert ended["frames"] > 0
        assert frontend.download(ended["output_path"]).shape[0] == ended["frames"]
        own.start("unseen", request)
        assert own.wait_ended("unseen")["state"] == "cancelled"


def test_the_stream_of_generate_still_ends_its_generation(own: Generations, server: Frontend) -> None:
    with assert_recovers(server), RawClient(server.url) as client:
        client.post_json("/api/v1/generate", SLEEPER)
        name = client.read_head().getheader("X-Generation-Id")
        assert name is not None
        assert own.get(name)["state"] == "running"
        assert own.cancel(name) == "cancelling"
        client.close()
        assert own.wait_ended(name)["error"]["code"] == "client_gone"
        assert own.events(name)[-1].data["code"] == "client_gone"


# -- Cancelling and deleting --------------------------------------------------------------------------------------


def test_a_cancel_keeps_the_frames(own: Generations, server: Frontend) -> None:
    with own.stream("PUT", "/c", json=SLOW) as events:
        next(events)
        assert own.cancel("c") == "cancelling"
        *_, last = events
    assert last.name == "cancelled"
    assert last.data["frames_completed"] == own.get("c")["frames"] > 0
    assert own.cancel("c") == "idle"
    assert server.download(last.data["output_path"]).shape[0] == last.data["frames_completed"]


def test_each_door_cancels_its_own(own: Generations, server: Frontend) -> None:
    own.start("mine", SLEEPER)
    assert server.cancel() == "idle"
    assert own.get("mine")["state"] == "running"


def test_deleting_frees_the_slot_and_the_name(own: Generations, server: Frontend) -> None:
    own.start("d", SLEEPER)
    with own.stream("GET", "/d/events") as events:
        assert own.delete("d") == 204
        assert not is_generating(server)
        assert [event.data["code"] for event in events] == ["client_gone"]
    assert own.request("GET", "/d").status_code == 404
    assert own.delete("d") == 404
    assert own.start("d", SHORT)["state"] in ("running", "complete")
    output = own.wait_ended("d")["output_path"]
    assert own.delete("d") == 204
    assert f"outputs/{output}" not in server.stored("outputs")
    assert_serves(server)


def test_a_generation_goes_with_its_output(own: Generations, server: Frontend) -> None:
    own.start("o", SHORT)
    output = own.wait_ended("o")["output_path"]
    assert http.delete(f"{server.url}/api/v1/files/{output}").status_code == 204
    assert own.request("GET", "/o").status_code == 404
    assert own.page()["generations"] == []


def test_generations_expire_with_their_outputs(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, store_ttl_s=1) as frontend:
        own = Generations(frontend)
        own.start("brief", SHORT)
        own.wait_ended("brief")
        eventually(lambda: own.request("GET", "/brief").status_code == 404)
        eventually(lambda: frontend.stored("outputs") == [])


# -- Frames -------------------------------------------------------------------------------------------------------


def test_frames_can_be_read_while_others_are_made(own: Generations, server: Frontend) -> None:
    with own.stream("PUT", "/f", json=PROBE | {"seed": 5, "chunk_specs": [{"chunk": 1, "text": "!sleep 3"}]}) as events:
        next(events)
        eventually(lambda: own.request("GET", "/f/frames").status_code == 200)
        early = own.request("GET", "/f/frames")
        assert own.request("GET", "/f/frames?from=9").status_code == 416
        *_, last = events
    assert struct.unpack("<5I", early.content[:20]) == (4, 9, 64, 96, 3)
    assert early.headers["X-Video-Frames"] == "9"
    whole = server.download(last.data["output_path"])
    assert early.content[20:] == whole[:9].tobytes()
    part = own.request("GET", "/f/frames?from=8&to=11")
    assert part.content[20:] == whole[8:11].tobytes()
    assert own.request("GET", "/f/frames?from=30&to=99").content[20:] == whole[30:].tobytes()
    assert own.request("HEAD", "/f/frames").headers["Content-Length"] == str(20 + whole.nbytes)
    for query, status in (("from=33", 416), ("from=5&to=5", 422), ("from=x", 422), ("to=-1", 422)):
        assert own.request("GET", f"/f/frames?{query}").status_code == status


def test_before_the_first_frame_there_is_nothing_to_read(own: Generations) -> None:
    own.start("empty", SLEEPER)
    answer = own.request("GET", "/empty/frames")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_ready")


# -- Lists and clients --------------------------------------------------------------------------------------------


def test_the_list_is_in_pages_newest_first(own: Generations) -> None:
    names = [f"g{number}" for number in range(5)]
    for name in names[:4]:
        own.start(name, SHORT)
        own.wait_ended(name)
    own.start("g4", SLEEPER)
    first = own.page(limit=2)
    assert [found["id"] for found in first["generations"]] == ["g4", "g3"]
    assert "request" not in first["generations"][0]
    second = own.page(limit=2, after=first["next"])
    third = own.page(limit=2, after=second["next"])
    assert [found["id"] for found in second["generations"] + third["generations"]] == ["g2", "g1", "g0"]
    assert third["next"] is None
    assert [found["id"] for found in own.page(state="running")["generations"]] == ["g4"]
    assert len(own.page(state="complete", limit=4)["generations"]) == 4
    assert own.page(state="failed") == {"generations": [], "next": None}
    for query in ("limit=0", "limit=101", "limit=x", "state=asleep"):
        assert own.request("GET", f"?{query}").status_code == 422
    assert own.request("GET", "?after=unknown").status_code == 404


def test_clients_do_not_see_each_other(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, api_keys="alice:secret-a,bob:secret-b") as frontend:
        alice, bob = Generations(frontend, "secret-a"), Generations(frontend, "secret-b")
        alice.start("same", SHORT)
        alice.wait_ended("same")
        for method, path in (
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/frames"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            assert bob.request(method, f"/same{path}").status_code == 404
        assert bob.page()["generations"] == []
        assert bob.put("same", SHORT | {"seed": 9}).status_code == 202
        bob.wait_ended("same")
        assert alice.get("same")["seed"] == 42
        assert bob.delete("same") == 204
        assert alice.get("same")["state"] == "complete"


# -- Dry runs -----------------------------------------------------------------------------------------------------


def test_a_dry_run_plans_what_a_post_would_make(own: Generations, server: Frontend) -> None:
    own.start("runs", SLEEPER)
    planned = own.request("POST", "?dry_run=1", json=PROBE | {"denoising_steps": [1000, 500]})
    assert planned.json() == {
        "height": 64,
        "width": 96,
        "num_chunks": 3,
        "chunks": [{"start": 0, "frames": 9}, {"start": 9, "frames": 12}, {"start": 21, "frames": 12}],
        "unused": planned.json()["unused"],
    }
    assert [found["id"] for found in own.page()["generations"]] == ["runs"]
    for request in (SHORT | {"num_frames": -1}, SHORT | {"pipeline_id": "nothing"}, SHORT | {"input_path": "x"}):
        dry = own.request("POST", "?dry_run=1", json=request)
        assert (dry.status_code, dry.json()) == ((wet := own.post(request)).status_code, wet.json())


def test_a_dry_run_takes_sizes_for_files(own: Generations, server: Frontend) -> None:
    video = noise(40, 64, 96)
    uploads = {"input_shape": list(video.shape)}
    request = {"pipeline_id": "gray", "prompt": "", "num_frames": 50}
    dry = own.request("POST", "?dry_run=1", json=request | {"uploads": uploads})
    real = own.request("POST", "?dry_run=1", json=request | {"input_path": server.upload(video)})
    assert (dry.status_code, dry.json()) == (200, real.json())
    specs = [{"chunk": 0, "vace_ref_images": [{"width": 40, "height": 20}]}]
    assert own.request("POST", "?dry_run=1", json=SHORT | {"chunk_specs": specs}).status_code == 200
    specs[0]["vace_ref_images"] = [{"width": 40}]  # type: ignore[list-item]
    assert own.request("POST", "?dry_run=1", json=SHORT | {"chunk_specs": specs}).status_code == 422
    assert own.post(SHORT | {"uploads": uploads}).status_code == 422


def test_dry_runs_are_limited(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path) as frontend:
        own = Generations(frontend)
        statuses = [own.request("POST", "?dry_run=1", json=SHORT).status_code for _ in range(61)]
        assert statuses == [200] * 60 + [429]
        refused = own.request("POST", "?dry_run=1", json=SHORT)
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert own.post(SHORT).status_code == 202
