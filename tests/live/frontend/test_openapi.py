"""The OpenAPI document and its page."""

from typing import Any

import pytest

from frontend.schema import GenerateRequest, LoadRequest
from tests.support import http
from tests.support.browser import CHROMIUM, NO_CHROMIUM, chromium
from tests.support.server import Frontend


@pytest.fixture(scope="module")
def document(server: Frontend) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"{server.url}/openapi.json").json()
    return found


def test_every_endpoint_is_there(document: dict[str, Any]) -> None:
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == {
        "/api/v1/generations": ["get", "post"],
        "/api/v1/generations/{id}": ["delete", "get", "put"],
        "/api/v1/generations/{id}/cancel": ["post"],
        "/api/v1/generations/{id}/events": ["get"],
        "/api/v1/generations/{id}/frames": ["get"],
        "/api/v1/generations/{id}/video.mp4": ["get"],
        "/api/v1/generations/{id}/video.webm": ["get"],
        "/api/v1/generations/{id}/video.gif": ["get"],
        "/api/v1/generations/{id}/poster.png": ["get"],
        "/api/v1/generations/{id}/contact-sheet.png": ["get"],
        "/api/v1/generate": ["post"],
        "/api/v1/generate/cancel": ["post"],
        "/api/v1/generate/upload": ["post"],
        "/api/v1/generate/upload-data": ["post"],
        "/api/v1/generate/download": ["get"],
        "/api/v1/batch": ["post"],
        "/api/v1/batch/cancel": ["post"],
        "/api/v1/batch/upload": ["post"],
        "/api/v1/batch/upload-data": ["post"],
        "/api/v1/batch/download": ["get"],
        "/api/v1/assets": ["post"],
        "/api/v1/files/{name}": ["delete"],
        "/api/v1/pipelines": ["get"],
        "/api/v1/pipeline/load": ["post"],
        "/api/v1/pipeline/status": ["get"],
        "/health": ["get"],
        "/health/live": ["get"],
        "/health/ready": ["get"],
        "/api/v1/session": ["delete", "post"],
        "/metrics": ["get"],
        "/v1/models": ["get"],
        "/v1/models/{id}": ["get"],
        "/v1/videos": ["get", "post"],
        "/v1/videos/sync": ["post"],
        "/v1/videos/{id}": ["delete", "get"],
        "/v1/videos/{id}/content": ["get"],
    }


def test_streams_and_binary_bodies_are_described(document: dict[str, Any]) -> None:
    paths = document["paths"]
    generate = paths["/api/v1/generate"]["post"]
    assert generate["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/GenerateRequest")
    assert "text/event-stream" in generate["responses"]["200"]["content"]
    refusals = {"400", "401", "403", "404", "408", "409", "413", "415", "422", "503", "507"}
    assert set(generate["responses"]) == {"200"} | refusals
    upload = paths["/api/v1/generate/upload"]["post"]
    assert "application/octet-stream" in upload["requestBody"]["content"]
    assert "video/mp4" in upload["requestBody"]["content"]
    headers = {part["name"] for part in upload["parameters"] if part["in"] == "header"}
    assert headers == {f"X-Video-{side}" for side in ("Frames", "Height", "Width", "Channels")}
    assert {part["name"]: part["schema"] for part in upload["parameters"] if part["in"] == "query"} == {
        "format": {"enum": ["mp4", "mov", "webm", "mkv"], "type": "string"},
        "start": {"default": 0, "maximum": 1_000_000, "minimum": 0, "type": "number"},
        "end": {"maximum": 1_000_000, "minimum": 0, "type": "number"},
        "fps": {"maximum": 240, "minimum": 0.1, "type": "number"},
        "max_frames": {"minimum": 1, "type": "integer"},
        "height": {"maximum": 8192, "minimum": 1, "type": "integer"},
        "width": {"maximum": 8192, "minimum": 1, "type": "integer"},
        "fit": {"default": "cover", "enum": ["cover", "contain", "fill"], "type": "string"},
    }
    download = paths["/api/v1/generate/download"]["get"]
    assert set(download["responses"]["206"]["headers"]) == {
        f"X-Video-{x}" for x in ("Frames", "Height", "Width", "Channels")
    }
    assert all(operation["summary"] for methods in paths.values() for operation in methods.values())


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [found for part in value.values() for found in references(part)]
        return [found for part in value for found in references(part)] if isinstance(value, list) else []

    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names
    assert names <= document["components"]["schemas"].keys()


def test_whatever_may_have_a_body_answers_415(server: Frontend, document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            headers = {"Content-Encoding": "gzip"}
            answer = http.request(method, server.url + path.format(name="x", id="x"), headers=headers)
            assert (answer.status_code == 415) == ("415" in operation["responses"]), (method, path)


def test_limits_are_in_the_schema(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert fields["num_frames"] == {
        "default": 64,
        "maximum": 10000,
        "minimum": 1,
        "title": "Num Frames",
        "type": "integer",
    }
    assert document["components"]["schemas"]["GenerateRequest"]["additionalProperties"] is False


@pytest.mark.parametrize("model", [GenerateRequest, LoadRequest])
def test_the_examples_are_requests_to_the_pipeline_that_is_shipped(
    document: dict[str, Any], model: type[GenerateRequest | LoadRequest]
) -> None:
    for example in document["components"]["schemas"][model.__name__]["examples"]:
        request = model.model_validate(example)
        named = request.entries if isinstance(request, LoadRequest) else [request]
        assert [each.pipeline_id for each in named] == ["longlive-small"]


def test_the_other_names_of_the_routes_are_described_as_such(document: dict[str, Any]) -> None:
    own_keys = {"summary", "operationId", "tags"}
    for path, methods in document["paths"].items():
        if path.startswith("/api/v1/batch"):
            original = path.replace("batch", "generate")
            for method, operation in methods.items():
                other = document["paths"][original][method]
                assert operation["summary"] == f"Alias of {original}"
                assert operation["tags"] == ["aliases"]
                assert operation.keys() - own_keys == other.keys() - own_keys
                assert all(operation[key] == other[key] for key in operation.keys() - own_keys)
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_the_docs_page_shows_the_api_without_internet(server: Frontend, document: dict[str, Any]) -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{server.url}/docs")
        page.locator(".opblock").first.wait_for()
        assert "Filmstrip" in page.title()
        assert page.locator(".opblock").count() == sum(map(len, document["paths"].values()))
        assert "/api/v1/generate/upload-data" in page.inner_text("body").replace("\u200b", "")
