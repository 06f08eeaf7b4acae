"""A frontend that is stopped or killed with generations that wait, run and have ended, and starts again."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.generations import Generations
from tests.support.recovery import PROBE, assert_recovers, assert_serves, noise
from tests.support.server import Frontend

SHORT = PROBE | {"num_frames": 9, "seed": 5}
CHUNKS = [{"chunk": number, "reset_cache": True} for number in range(6)]
SLOW = PROBE | {"num_frames": 54, "seed": 7, "prompt": "!sleep 0.3", "chunk_specs": CHUNKS}
VIDEO = noise(9)


class Restarting:
    """A frontend with a Triton of its own that keeps its data directory over restarts.

    A Triton that outlived a killed frontend would keep the sequence of its generation.
    """

    def __init__(self, folder: Path, models: Path, **settings: object) -> None:
        self._folder, self._models, self._settings = folder, models, settings
        self._starts = 0
        self.start()

    def start(self) -> None:
        self._starts += 1
        self.frontend = Frontend(
            self._folder / str(self._starts),
            *("--embedded", "--model-repository", str(self._models), "--data-dir", str(self._folder / "data")),
            settings=self._settings,
        )
        self.frontend.data_dir = self._folder / "data"
        self.frontend.wait_healthy()
        self.own = Generations(self.frontend)

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.frontend.process.send_signal(number)
        self.frontend.process.wait(30)
        self.start()


@pytest.fixture
def restarting(two_models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Restarting]:
    restarting = Restarting(tmp_path, two_models, **getattr(request, "param", {}))
    yield restarting
    restarting.frontend.stop()


def fill(own: Generations, frontend: Frontend) -> list[tuple[int, str]]:
    """One that is done, one that runs and has an event, three that wait; the events of the first one."""
    own.start("done", SHORT)
    events = [(event.id, event.name) for event in own.events("done")]
    with own.stream("PUT", "/runs", json=SLOW) as stream:
        next(stream)
    own.start("w1", {"pipeline_id": "passthrough", "prompt": "", "num_frames": 9, "input_path": frontend.upload(VIDEO)})
    own.start("w2", SHORT | {"seed": -1})
    own.start("w3", SHORT)
    return events


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_waits_and_what_is_done_survive(restarting: Restarting, number: int) -> None:
    events = fill(restarting.own, restarting.frontend)
    before = {name: restarting.own.get(name) for name in ("done", "w2")}
    restarting.restart(number)
    own, frontend = restarting.own, restarting.frontend
    assert own.get("done") == before["done"]
    assert [(event.id, event.name) for event in own.events("done")] == events
    assert [event.id for event in own.events("done", after=1)] == [2]
    assert own.put("done", SHORT).status_code == 200
    assert own.put("done", SHORT | {"seed": 6}).status_code == 409
    ran = own.get("runs")
    assert (ran["state"], ran["error"]["code"]) == ("failed", "restarted")
    last = own.events("runs")[-1]
    assert last.data["code"] == ("restarted" if number == signal.SIGKILL else "shutting_down")
    assert own.events("runs", after=last.id - 1) == [last]
    ended = {name: own.wait_ended(name) for name in ("w1", "w2", "w3")}
    assert [found["state"] for found in ended.values()] == ["complete"] * 3
    starts = [found["started_at"] for found in ended.values()]
    assert starts == sorted(starts)
    assert ended["w2"]["seed"] == before["w2"]["seed"]
    assert np.array_equal(frontend.download(ended["w1"]["output_path"]), VIDEO)
    done = frontend.download(own.get("done")["output_path"])
    assert np.array_equal(frontend.download(ended["w3"]["output_path"]), done)
    names = [found["id"] for found in own.page()["generations"]]
    assert names == ["w3", "w2", "w1", "runs", "done"]
    assert_serves(frontend)


@pytest.mark.parametrize("restarting", [{"resume": True}], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_resumed_gives_the_same_bytes_and_no_event_twice(restarting: Restarting, number: int) -> None:
    own = restarting.own
    own.start("whole", SLOW)
    whole = restarting.frontend.download(own.wait_ended("whole")["output_path"])
    seen = []
    with own.stream("PUT", "/again", json=SLOW) as stream:
        seen += [next(stream), next(stream)]
        restarting.frontend.process.send_signal(number)
        try:
            seen += list(stream)
        except Exception:  # noqa: BLE001  the connection breaks where the process is killed
            assert number == signal.SIGKILL
    assert {event.name for event in seen} == {"progress"}  # no last event
    restarting.frontend.process.wait(30)
    restarting.start()
    own = restarting.own
    seen += own.events("again", after=seen[-1].id)
    assert [event.id for event in seen] == list(range(1, 8))
    assert [event.data["chunk"] for event in seen[:-1]] == list(range(1, 7))
    assert seen[-1].name == "complete"
    assert np.array_equal(restarting.frontend.download(seen[-1].data["output_path"]), whole)


def test_a_restart_ends_what_came_by_generate(restarting: Restarting) -> None:
    with restarting.frontend.stream(**SLOW) as events:
        name = events.response.headers["X-Generation-Id"]
        next(iter(events))
        restarting.restart()
    ended = restarting.own.get(name)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "restarted")


def test_records_that_cannot_be_read_are_put_aside(restarting: Restarting) -> None:
    restarting.own.start("old", SHORT)
    restarting.own.wait_ended("old")
    restarting.frontend.stop()
    database = restarting.frontend.data_dir / "generations.db"
    database.write_bytes(b"no database" * 1000)
    restarting.start()
    assert restarting.own.page()["generations"] == []
    assert "cannot be read" in restarting.frontend.log()
    assert database.with_suffix(".bad").exists()
    restarting.own.start("new", SHORT)
    assert restarting.own.wait_ended("new")["state"] == "complete"


def test_a_generation_waits_while_triton_is_away(victim: Frontend) -> None:
    own = Generations(victim)
    with assert_recovers(victim, outputs=1):
        own.start("dies", PROBE | {"prompt": "!die"})
        own.start("waits", SHORT)
        assert own.wait_ended("dies")["error"]["code"] == "model_died"
        assert own.wait_ended("waits")["state"] == "complete"
