"""Several clients at once: one generation runs, the others are refused, and all other requests are served."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support import http
from tests.support.http import GENERATE
from tests.support.probe_video import probe_video
from tests.support.raw_client import RawClient
from tests.support.recovery import PROBE, assert_recovers, is_generating, noise
from tests.support.server import Frontend, frontend_on

ROUNDS = 20


@pytest.fixture(scope="module")
def frontend(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend_on(server, tmp_path_factory.mktemp("crowds")) as frontend:
        yield frontend


class Answer(NamedTuple):
    """The response to a request, and when it was complete."""

    status: int
    body: Any  # of a refusal: JSON; of a stream: its events
    at: float


@pytest.mark.parametrize("crowd", [2, 5])
def test_one_of_several_clients_wins_and_the_others_are_refused_at_once(frontend: Frontend, crowd: int) -> None:
    with assert_recovers(frontend, outputs=ROUNDS):
        for number in range(ROUNDS):
            seeds = range(crowd * number, crowd * (number + 1))
            answers = dict(zip(seeds, post_together(frontend, seeds), strict=True))
            won = [seed for seed in seeds if answers[seed].status == 200]
            assert len(won) == 1, answers
            winner = answers.pop(won[0])
            assert [event.name for event in winner.body] == ["progress"] * 3 + ["complete"]
            made = frontend.download(winner.body[-1].data["output_path"])
            assert np.array_equal(made, probe_video(33, seed=won[0]))
            for loser in answers.values():
                assert loser.status == 409
                message = loser.body["detail"]
                assert loser.body == {"error": {"code": "busy", "message": message}, "detail": message}
                assert loser.at < winner.at  # it did not wait for the winner's end


def post_together(frontend: Frontend, seeds: range) -> list[Answer]:
    """Send a request for each seed but for its last byte, then all the last bytes."""
    specs = [{"chunk": 0, "text": "!sleep 0.3"}, {"chunk": 1, "text": "x"}]  # whoever comes later finds the slot taken
    with ExitStack() as stack, ThreadPoolExecutor(len(seeds)) as pool:
        clients = [stack.enter_context(RawClient(frontend.url)) for _ in seeds]
        ends = [
            client.post_json(GENERATE, PROBE | {"seed": seed, "chunk_specs": specs}, keep_back=1)
            for client, seed in zip(clients, seeds, strict=True)
        ]
        for client, end in zip(clients, ends, strict=True):
            client.send(end)
        return list(pool.map(read_answer, clients))


def read_answer(client: RawClient) -> Answer:
    answer = client.read_head()
    if answer.status != 200:
        return Answer(*client.read_json(), time.monotonic())
    return Answer(200, list(client.read_events()), time.monotonic())


def test_threads_that_post_at_once_again_and_again_never_overlap_in_the_model(frontend: Frontend) -> None:
    """Eight clients that post until they succeed: each gets its own video, whoever ran before."""
    done = threading.Event()
    made = []

    def keep_posting(first_seed: int) -> int:
        refused = 0
        for seed in range(first_seed, first_seed + 1000):
            if done.is_set():
                break
            answer = http.post(f"{frontend.url}{GENERATE}", json=PROBE | {"seed": seed}, timeout=30)
            if answer.status_code == 200:
                assert answer.text.count("event: progress") == 3
                made.append((seed, answer.text.split('"output_path": "')[1].split('"')[0]))
                if len(made) >= ROUNDS:
                    done.set()
            else:
                assert answer.status_code == 409
                refused += 1
        return refused

    with ThreadPoolExecutor(8) as pool:
        refused = sum(pool.map(keep_posting, range(0, 8000, 1000)))
    assert refused > 0
    for seed, output in made:
        assert np.array_equal(frontend.download(output), probe_video(33, seed))
    with assert_recovers(frontend):
        pass


def test_uploads_downloads_and_health_during_a_generation(frontend: Frontend) -> None:
    video = noise(300)
    with assert_recovers(frontend, inputs=10, outputs=2), ThreadPoolExecutor(4) as pool:
        earlier = frontend.generate(**PROBE | {"num_frames": 300}, seed=7)[-1][1]["output_path"]
        with frontend.stream(**PROBE | {"prompt": "!sleep 0.1", "num_frames": 1197}, seed=8) as stream:
            health = [pool.submit(is_generating, frontend) for _ in range(5)]
            videos = [pool.submit(frontend.upload, video) for _ in range(5)]
            blobs = [pool.submit(frontend.upload_data, video.tobytes()) for _ in range(5)]
            copies = [pool.submit(frontend.download, earlier) for _ in range(5)]
            asked: list[Future[Any]] = [*health, *videos, *blobs, *copies]
            wait(asked, timeout=60)
            assert is_generating(frontend)  # all of it happened meanwhile
            events = list(stream)
        assert all(answer.result() for answer in health)
        assert all(
            (frontend.data_dir / "videos" / path.result()).read_bytes()[20:] == video.tobytes() for path in videos
        )
        assert all((frontend.data_dir / "blobs" / path.result()).read_bytes() == video.tobytes() for path in blobs)
        assert all(np.array_equal(copy.result(), probe_video(300, seed=7)) for copy in copies)
        name, end = events[-1]
        assert (name, end["num_frames"]) == ("complete", 1197)
        assert np.array_equal(frontend.download(end["output_path"]), probe_video(1197, seed=8))
