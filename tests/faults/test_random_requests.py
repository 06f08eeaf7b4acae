"""Random requests, generated from the OpenAPI document: the server survives them all."""

from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from tests.support.http import GENERATE
from tests.support.raw_client import RawResponse
from tests.support.recovery import assert_serves, eventually
from tests.support.refusals import MAX_REFUSAL_S, check_refusal, count_tracebacks
from tests.support.server import Frontend, frontend_on

POSITIVE = {
    "PUT /api/v1/generations/{id}": 20,
    "POST /api/v1/generations": 20,
    "GET /api/v1/generations": 20,
    "GET /api/v1/generations/{id}": 5,
    "POST /api/v1/generations/{id}/cancel": 5,
    "DELETE /api/v1/generations/{id}": 5,
    "GET /api/v1/generations/{id}/events": 10,
    "GET /api/v1/generations/{id}/frames": 10,
    "GET /api/v1/generations/{id}/video.mp4": 5,
    "GET /api/v1/generations/{id}/video.webm": 5,
    "GET /api/v1/generations/{id}/video.gif": 5,
    "GET /api/v1/generations/{id}/poster.png": 5,
    "GET /api/v1/generations/{id}/contact-sheet.png": 5,
    "POST /api/v1/generate": 200,
    "POST /api/v1/generate/cancel": 1,  # there is only one such request, as for every other operation with 1
    "POST /api/v1/generate/upload": 50,
    "POST /api/v1/generate/upload-data": 40,
    "POST /api/v1/batch": 20,
    "POST /api/v1/batch/cancel": 1,
    "POST /api/v1/batch/upload": 10,
    "POST /api/v1/batch/upload-data": 10,
    "GET /api/v1/batch/download": 10,
    "POST /api/v1/assets": 30,
    "GET /api/v1/generate/download": 40,
    "DELETE /api/v1/files/{name}": 25,
    "POST /v1/videos": 20,
    "POST /v1/videos/sync": 10,
    "GET /v1/videos": 10,
    "GET /v1/videos/{id}": 5,
    "GET /v1/videos/{id}/content": 5,
    "DELETE /v1/videos/{id}": 5,
    "GET /v1/models": 1,
    "GET /v1/models/{id}": 5,
    "POST /api/v1/session": 1,
    "DELETE /api/v1/session": 1,
    "GET /api/v1/pipelines": 1,
    "POST /api/v1/pipeline/load": 40,
    "GET /api/v1/pipeline/status": 1,
    "GET /health": 1,
    "GET /health/live": 1,
    "GET /health/ready": 1,
    "GET /metrics": 1,
}
NEGATIVE = {
    "PUT /api/v1/generations/{id}": 20,
    "GET /api/v1/generations": 20,
    "GET /api/v1/generations/{id}/events": 20,
    "POST /api/v1/generate": 100,
    "POST /api/v1/generate/upload": 40,
    "GET /api/v1/generate/download": 60,
    "POST /api/v1/pipeline/load": 60,
}


class Visitor:
    """Sends cases and checks each response."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.statuses: dict[str, Counter[int]] = {}

    def send(self, case: Case) -> None:
        with requests.Session() as session:
            answer = case.call(session=session, timeout=60)
        seconds = float(answer.elapsed)
        assert seconds < MAX_REFUSAL_S, case.body
        self.statuses.setdefault(case.operation.label, Counter())[answer.status_code] += 1
        if answer.status_code not in (200, 202, 204):
            headers = {name.lower(): values[0] for name, values in answer.headers.items()}
            check_refusal(self.frontend, RawResponse(answer.status_code, headers, answer.content, seconds))
        elif case.path == GENERATE:  # ends without an error, because nothing here makes a model fail
            assert answer.content.decode().rstrip().splitlines()[-2] == "event: complete"


@pytest.fixture
def visitor(server: Frontend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A visitor of its own frontend, because the store fills; nothing incomplete is left after the visit."""
    with frontend_on(server, tmp_path_factory.mktemp("visited")) as frontend:
        yield Visitor(frontend)
        frontend.wait_idle()
        eventually(lambda: not frontend.stored("partial", "work"))
        assert count_tracebacks(frontend) == 0
        assert_serves(frontend)


def visit(visitor: Visitor, mode: GenerationMode, counts: dict[str, int]) -> None:
    """Send so many random requests to each operation."""
    schema = schemathesis.openapi.from_url(f"{visitor.frontend.url}/openapi.json")
    operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    assert set(counts) == set(operations) or mode is GenerationMode.NEGATIVE
    for label, num_examples in counts.items():

        @hypothesis.settings(
            max_examples=num_examples,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operations[label].as_strategy(generation_mode=mode), likely=st.booleans())
        def send(case: Case, *, likely: bool) -> None:
            if mode is GenerationMode.POSITIVE and case.path == GENERATE:
                make_possible(case.body, likely=likely)
            visitor.send(case)

        send()


def make_possible(body: dict[str, object], *, likely: bool) -> None:
    """Turn a request into one that the probe could run quickly; if `likely`, without names of missing files."""
    body["pipeline_id"] = "probe"
    body["num_frames"] = min(int(str(body.get("num_frames", 64)).partition(".")[0]), 30)
    body["width"] = body["height"] = None
    specs = body.get("chunk_specs") or []
    assert isinstance(specs, list)
    for spec in specs:
        spec["chunk"] = int(spec["chunk"]) % 3
    if likely:
        made_up = ("input_path", "data_blob_path", "pre_processor_id", "post_processor_id", "lora_scales")
        body["chunk_specs"] = specs[:1]
        for given_ in (body, *specs[:1]):
            for name in [name for name in given_ if name in made_up or "_image" in name or "_shape" in name]:
                del given_[name]
            for name in [name for name in given_ if "_offset" in name or "transition" in name or name == "text"]:
                del given_[name]
        body.pop("vace_use_input_video", None)


def test_requests_that_follow_the_description(visitor: Visitor) -> None:
    visit(visitor, GenerationMode.POSITIVE, POSITIVE)
    assert set(visitor.statuses) == set(POSITIVE)
    generated = visitor.statuses["POST /api/v1/generate"]
    assert generated[200], generated  # some are run
    assert generated[422], generated  # others get as far as the plan
    assert visitor.statuses["POST /api/v1/generate/upload-data"][200]


def test_requests_that_break_the_description(visitor: Visitor) -> None:
    visit(visitor, GenerationMode.NEGATIVE, NEGATIVE)
    assert set(visitor.statuses) == set(NEGATIVE)
    generated = visitor.statuses["POST /api/v1/generate"]
    # 404: what breaks the description may be null or empty, which leaves the field unset; the pipeline is made up.
    assert set(generated) <= {400, 404, 413, 422}, generated
