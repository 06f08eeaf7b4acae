"""One frontend with several Tritons: a slot for each, one queue, and what happens when one of them dies."""

import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support import http
from tests.support.generations import Generations
from tests.support.processes import command_line, descendants
from tests.support.recovery import PROBE, eventually
from tests.support.server import MODELS, Frontend, serving

SLEEP_S = 20
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def three(two_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    """A server with three embedded Tritons."""
    folder = tmp_path_factory.mktemp("three")
    frontend = Frontend(folder, "--embedded=3", model_repository=two_models, model_restart_window_s=0)
    with serving(frontend):
        yield frontend


def slots(frontend: Frontend) -> list[str]:
    """The states of the slots."""
    found = http.get(f"{frontend.url}/health").json()["slots"]
    assert [slot["name"] for slot in found] == [str(number) for number in range(len(found))]
    return [slot["state"] for slot in found]


def triton_of(frontend: Frontend, slot: str) -> psutil.Process:
    """The tritonserver of a slot."""
    tritons = [process for process in descendants(frontend) if "/tritonserver" in " ".join(command_line(process)[:1])]
    (found,) = [process for process in tritons if process.environ().get("CUDA_VISIBLE_DEVICES") == slot]
    return found


def test_three_run_at_once_and_the_next_one_waits(three: Frontend) -> None:
    own = Generations(three)
    assert slots(three) == ["ready"] * 3
    request = PROBE | {"num_frames": 9, "prompt": f"!sleep {SLEEP_S}"}
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda name: own.start(name, request), NAMES))
    for name in NAMES:
        own.wait(name, "running")
    assert slots(three) == ["generating"] * 3
    refused = three.post(**PROBE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "busy")
    assert own.start("d", PROBE)["position"] == 1
    metrics = http.get(f"{three.url}/metrics").text
    assert [f'filmstrip_slot_in_use{{slot="{number}"}} 1.0' in metrics for number in range(3)] == [True] * 3
    ended = [own.wait_ended(name) for name in NAMES]
    assert [found["state"] for found in ended] == ["complete"] * 3
    # The sum is what one Triton takes for all of them.
    elapsed = max(found["ended_at"] for found in ended) - min(found["started_at"] for found in ended)
    assert sum(found["ended_at"] - found["started_at"] for found in ended) / elapsed >= 2.8
    assert {own.events(name)[0].data["slot"] for name in NAMES} == {"0", "1", "2"}
    assert own.wait_ended("d")["state"] == "complete"
    assert re.search(r"frames of probe in 1 chunks.*slot=2", three.log())
    for name in (*NAMES, "d"):
        assert own.delete(name) == 204


def test_one_that_dies_costs_its_own_generation_only(three: Frontend) -> None:
    own = Generations(three)
    request = PROBE | {"num_frames": 21, "chunk_specs": [{"chunk": 1, "text": "!sleep 10"}]}
    for name in NAMES:
        own.start(name, request)
    eventually(lambda: all(own.get(name)["chunk"] for name in NAMES), 60)
    with own.stream("GET", "/b/events") as events:
        slot = next(events).data["slot"]
    triton_of(three, slot).send_signal(signal.SIGKILL)
    lost = own.wait_ended("b")
    assert (lost["state"], lost["error"]["code"]) == ("failed", "triton_unavailable")
    assert http.get(f"{three.url}/health").status_code == 200
    assert [own.wait_ended(name)["state"] for name in ("a", "c")] == ["complete"] * 2
    assert {own.events(name)[0].data["slot"] for name in NAMES} == {"0", "1", "2"}
    eventually(lambda: slots(three) == ["ready"] * 3, 60)
    assert triton_of(three, slot).is_running()
    for name in NAMES:
        assert own.delete(name) == 204
        own.start(name, request)
    for name in NAMES:
        own.wait(name, "running")
    assert slots(three) == ["generating"] * 3
    for name in NAMES:
        assert own.delete(name) == 204


def test_one_model_that_dies_costs_its_own_generation_only(three: Frontend) -> None:
    own = Generations(three)
    own.start("dies", PROBE | {"chunk_specs": [{"chunk": 1, "text": "!die"}]})
    own.start("lives", PROBE | {"chunk_specs": [{"chunk": 1, "text": "!sleep 1"}]})
    assert own.wait_ended("lives")["state"] == "complete"
    lost = own.wait_ended("dies")
    assert (lost["state"], lost["error"]["code"]) == ("failed", "model_died")
    eventually(lambda: slots(three) == ["ready"] * 3, 60)
    for name in ("dies", "lives"):
        assert own.delete(name) == 204


@pytest.fixture
def two_kinds(tmp_path: Path) -> Iterator[tuple[Frontend, Frontend]]:
    """A frontend on the Tritons of two others, one with `probe`, one with `other`; and the second of those."""
    shutil.copytree(Path(MODELS) / "probe", tmp_path / "probes" / "probe")
    other = shutil.copytree(Path(MODELS) / "probe", tmp_path / "others" / "other") / "config.pbtxt"
    other.write_text(other.read_text().replace('name: "probe"', 'name: "other"'))
    shutil.copytree(Path(MODELS) / "passthrough", tmp_path / "others" / "passthrough", symlinks=False)
    started = [
        Frontend(tmp_path / f"{name}-server", "--embedded", model_repository=tmp_path / name)
        for name in ("probes", "others")
    ]
    try:
        for frontend in started:
            frontend.wait_healthy()
        urls = ",".join(frontend.triton_url for frontend in started)
        both = Frontend(tmp_path / "both", "--triton-url", urls)
        started.append(both)
        with serving(both):
            yield both, started[1]
    finally:
        for frontend in started:
            frontend.stop()


def test_a_generation_goes_where_its_pipelines_are(two_kinds: tuple[Frontend, Frontend]) -> None:
    both, others = two_kinds
    own = Generations(both)
    listed = http.get(f"{both.url}/api/v1/pipelines").json()["pipelines"]
    assert [pipeline["id"] for pipeline in listed] == ["other", "passthrough", "probe"]
    apart = own.put("apart", PROBE | {"post_processor_id": "passthrough"})
    assert (apart.status_code, apart.json()["error"]["field"]) == (422, "post_processor_id")
    unknown = own.put("unknown", PROBE | {"pipeline_id": "nothing"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_pipeline")
    other = PROBE | {"pipeline_id": "other"}
    own.start("together", other | {"post_processor_id": "passthrough"})
    assert own.events("together")[0].data["slot"] == "1"
    own.start("runs", other | {"prompt": "!sleep 60"})
    own.start("waits", other)
    assert own.get("waits")["state"] == "queued"
    own.start("passes", PROBE)  # nothing that waits can use its Triton
    assert own.events("passes")[0].data["slot"] == "0"

    others.stop()
    eventually(lambda: own.get("runs")["state"] == "queued", 60)
    own.start("goes-on", PROBE)
    assert own.wait_ended("goes-on")["state"] == "complete"
    assert [own.get(name)["state"] for name in ("runs", "waits")] == ["queued"] * 2
    eventually(lambda: slots(both) == ["ready", "unavailable"], 60)
    assert http.get(f"{both.url}/health").status_code == 200
    down = own.put("down", other)
    assert (down.status_code, down.json()["error"]["code"]) == (503, "triton_unavailable")
    for name in ("runs", "waits"):
        assert own.cancel(name) == "cancelled"
