"""The queue of generations: bounded, fair between clients, and told to those who wait."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support import http
from tests.support.generations import Generations
from tests.support.recovery import PROBE, eventually, is_generating, noise
from tests.support.server import Frontend, frontend_on

SHORT = PROBE | {"num_frames": 9}
SLEEPER = PROBE | {"prompt": "!sleep 60"}


def metric(frontend: Frontend, name: str) -> float:
    lines = http.get(f"{frontend.url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_fifty_clients_at_once_fill_a_queue_of_sixteen(server: Frontend, tmp_path: Path) -> None:
    keys = ",".join(f"client{number}:key{number}" for number in range(50))
    with frontend_on(server, tmp_path, api_keys=keys, queue_length=16) as frontend:
        clients = [Generations(frontend, f"key{number}") for number in range(50)]
        start = threading.Barrier(len(clients))

        def post(client: Generations) -> httpx.Response:
            start.wait()
            return client.post(SLEEPER)

        with ThreadPoolExecutor(len(clients)) as threads:
            answers = list(threads.map(post, clients))
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(202), statuses.count(429)) == (17, 33)
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
        accepted = [
            (client, answer.json()["id"]) for client, answer in zip(clients, answers, strict=True) if answer.is_success
        ]
        found = [client.get(name) for client, name in accepted]
        assert sorted(each["position"] or 0 for each in found) == list(range(17))
        headers = {"Authorization": "Bearer key0"}
        assert "filmstrip_queue_depth 16.0" in http.get(f"{frontend.url}/metrics", headers=headers).text
        for client, name in sorted(accepted, key=lambda pair: pair[0].get(pair[1])["position"] or 0, reverse=True):
            assert client.delete(name) == 204
        assert not is_generating(frontend)


def test_clients_take_turns(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, api_keys="alice:a,bob:b") as frontend:
        alice, bob = Generations(frontend, "a"), Generations(frontend, "b")
        alice.start("a0", SLEEPER)
        for number in range(1, 4):
            alice.start(f"a{number}", SHORT)
        bob.start("b1", SHORT)
        bob.start("b2", SHORT)
        places = {
            name: client.get(name)["position"]
            for client, name in (
                (alice, "a1"),
                (bob, "b1"),
                (alice, "a2"),
                (bob, "b2"),
                (alice, "a3"),
            )
        }
        assert list(places.values()) == [1, 2, 3, 4, 5]
        assert frontend_is_busy(frontend, "a")
        alice.delete("a0")
        ended = [
            client.wait_ended(name)
            for client, name in (
                (alice, "a1"),
                (bob, "b1"),
                (alice, "a2"),
                (bob, "b2"),
                (alice, "a3"),
            )
        ]
        assert [found["state"] for found in ended] == ["complete"] * 5
        starts = [found["started_at"] for found in ended]
        assert starts == sorted(starts)


def frontend_is_busy(frontend: Frontend, key: str) -> bool:
    headers = {"Authorization": f"Bearer {key}"}
    answer = http.post(f"{frontend.url}/api/v1/generate", json=SHORT, headers=headers)
    return answer.status_code == 409 and answer.json()["error"]["code"] == "busy"


def test_who_waits_is_told_the_place(server: Frontend, tmp_path: Path) -> None:
    with frontend_on(server, tmp_path, keep_alive_s=0.05) as frontend:
        own = Generations(frontend)
        own.start("first", SLEEPER)
        own.start("second", SLEEPER)
        with own.stream("PUT", "/third", json=SHORT) as events:
            assert (next(events).data, own.get("third")["state"]) == ({"position": 2}, "queued")
            assert own.cancel("second") == "cancelled"
            assert next(events).data == {"position": 1}
            own.delete("first")
            assert [(event.id, event.name) for event in events] == [(1, "progress"), (2, "complete")]
        assert own.events("second")[0].data["total_chunks"] == 3
        assert [event.name for event in own.events("third")] == ["progress", "complete"]
        assert metric(frontend, "filmstrip_queue_wait_seconds_count") == 1
        assert metric(frontend, "filmstrip_queue_depth") == 0


def test_what_waits_keeps_its_inputs(server: Frontend, tmp_path: Path) -> None:
    video = noise(9)
    with frontend_on(server, tmp_path, store_ttl_s=1.5) as frontend:
        own = Generations(frontend)
        own.start("runs", SLEEPER)
        name = frontend.upload(video)
        own.start("waits", {"pipeline_id": "passthrough", "prompt": "", "num_frames": 9, "input_path": name})
        assert http.delete(f"{frontend.url}/api/v1/files/{name}").json()["error"]["code"] == "in_use"
        time.sleep(2.5)  # longer than files live
        own.delete("runs")
        ended = own.wait_ended("waits")
        assert ended["state"] == "complete", ended
        eventually(lambda: frontend.stored("videos") == [])


def test_what_cannot_start_when_its_turn_comes_fails_and_lets_others_pass(server: Frontend, tmp_path: Path) -> None:
    own_bytes = 20 + 33 * 64 * 96 * 3
    with frontend_on(server, tmp_path, store_bytes=3 * own_bytes) as frontend:
        own = Generations(frontend)
        own.start("runs", SLEEPER)
        own.start("large", PROBE | {"num_frames": 66})  # two thirds of the store
        own.start("small", SHORT)
        frontend.upload(noise(53))  # more than half of it
        own.delete("runs")
        states = {each: own.wait_ended(each)["state"] for each in ("large", "small")}
        assert states == {"large": "failed", "small": "complete"}
        assert own.get("large")["error"]["code"] == "storage_full"
        assert own.events("large")[-1].data["code"] == "storage_full"


@pytest.mark.parametrize("length", [0, 1])
def test_generate_waits_only_if_it_may(server: Frontend, tmp_path: Path, length: int) -> None:
    with frontend_on(server, tmp_path, generate_queue_length=length, keep_alive_s=0.05) as frontend:
        own = Generations(frontend)
        own.start("runs", SLEEPER)
        if length == 0:
            assert frontend.post(**SHORT).json()["error"]["code"] == "busy"
        else:
            with frontend.stream(**SHORT) as events:
                name = events.response.headers["X-Generation-Id"]
                assert own.get(name)["position"] == 1
                assert frontend.post(**SHORT).status_code == 409
                time.sleep(0.5)  # long enough for comments
                own.delete("runs")
                assert [event for event, _ in events] == ["progress", "complete"]
                assert events.comments
            own.start("runs", SLEEPER)
            with frontend.stream(**SHORT) as events:
                assert frontend.cancel() == "cancelling"
                assert [event for event, _ in events] == ["cancelled"]
        own.delete("runs")
