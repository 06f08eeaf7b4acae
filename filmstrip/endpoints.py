"""The server's endpoints: what a call of each sends and how its answer is read. No I/O: both clients share it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from filmstrip.errors import UnknownPipeline
from filmstrip.http_errors import read_error, unexpected
from filmstrip.models import (
    CancelAnswer,
    Health,
    LoadAnswer,
    LoadStatus,
    PipelineInfo,
    PipelineList,
    UploadedAsset,
    UploadedData,
    UploadedVideo,
)
from filmstrip.wire import VIDEO_HEADER_BYTES, BlobBuilder, VideoShape

EVENT_STREAM = "text/event-stream"
BINARY = "application/octet-stream"

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Call:
    """What a call of an endpoint sends.

    Attributes:
        method: the HTTP method.
        path: relative to the base URL.
        params: the query.
        headers: in addition to those of every call.
        json: the body, where it is JSON.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None

    def build(self, http: httpx.Client | httpx.AsyncClient, content: Any = None) -> httpx.Request:
        """The request, to be sent by `http`; `content` is a body that is not JSON."""
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, json=self.json, content=content
        )


@dataclass(frozen=True, kw_only=True)
class AnswerCall(Call, Generic[AnswerT]):
    """A call whose answer is read at once.

    Attributes:
        read: reads the body.
        ok_statuses: statuses other than 2xx that carry an answer, not an error.
    """

    read: Callable[[bytes], AnswerT]
    ok_statuses: frozenset[int] = frozenset()

    def answer(self, response: httpx.Response) -> AnswerT:
        """Read an answer, whose body must have been read.

        Raises:
            FilmstripError: the server refused; the class belongs to the error's code.
            UnexpectedAnswer: the answer is not Filmstrip's.
        """
        if not (response.is_success or response.status_code in self.ok_statuses):
            raise read_error(response)
        try:
            return self.read(response.content)
        except ValueError:  # pydantic's ValidationError is one, too
            raise unexpected(response) from None


@dataclass(frozen=True, kw_only=True)
class StreamCall(Call):
    """A call whose answer is read piece by piece.

    Attributes:
        media_type: of the answer.
    """

    media_type: str

    def is_answered_by(self, response: httpx.Response) -> bool:
        """Whether a successful response is the expected stream, and not a login page, for example."""
        media_type: str = response.headers.get("Content-Type", "")
        return media_type.partition(";")[0].strip().lower() == self.media_type


def upload(shape: VideoShape) -> AnswerCall[UploadedVideo]:
    """Upload an input video of this shape."""
    headers = {
        "X-Video-Frames": str(shape.frames),
        "X-Video-Height": str(shape.height),
        "X-Video-Width": str(shape.width),
        "X-Video-Channels": str(shape.channels),
        **_binary(shape.num_bytes),
    }
    return AnswerCall("POST", "/api/v1/generate/upload", read=UploadedVideo.model_validate_json, headers=headers)


def upload_data(data: object) -> AnswerCall[UploadedData]:
    """Upload a blob, whose size is known if it is bytes or a BlobBuilder."""
    num_bytes = len(data) if isinstance(data, bytes) else data.size if isinstance(data, BlobBuilder) else None
    return AnswerCall(
        "POST", "/api/v1/generate/upload-data", read=UploadedData.model_validate_json, headers=_binary(num_bytes)
    )


def upload_asset() -> AnswerCall[UploadedAsset]:
    """Upload an image."""
    return AnswerCall("POST", "/api/v1/assets", read=UploadedAsset.model_validate_json, headers=_binary(None))


def pipelines() -> AnswerCall[PipelineList]:
    """List the pipelines."""
    return AnswerCall("GET", "/api/v1/pipelines", read=PipelineList.model_validate_json)


def load(pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None) -> AnswerCall[LoadAnswer]:
    """Load pipelines."""
    ids = [pipeline_ids] if isinstance(pipeline_ids, str) else list(pipeline_ids)
    body: dict[str, Any] = {"pipeline_ids": ids}
    if load_params is not None:
        body["load_params"] = dict(load_params)
    return AnswerCall("POST", "/api/v1/pipeline/load", read=LoadAnswer.model_validate_json, json=body)


def load_status() -> AnswerCall[LoadStatus]:
    """The status of the last load."""
    return AnswerCall("GET", "/api/v1/pipeline/status", read=LoadStatus.model_validate_json)


def health() -> AnswerCall[Health]:
    """The server's health; 503 carries the same JSON."""
    return AnswerCall("GET", "/health", read=Health.model_validate_json, ok_statuses=frozenset({503}))


def cancel() -> AnswerCall[CancelAnswer]:
    """End the running generation after its current chunk."""
    return AnswerCall("POST", "/api/v1/generate/cancel", read=CancelAnswer.model_validate_json)


def generate(request: Mapping[str, Any] | None, fields: Mapping[str, object]) -> StreamCall:
    """Start a generation; the answer is a stream of events.

    Args:
        request: fields of a GenerateRequest.
        fields: the same as keywords, which take precedence; None counts as not set.
    """
    body = {**(request or {}), **{name: value for name, value in fields.items() if value is not None}}
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    return StreamCall("POST", "/api/v1/generate", headers=headers, json=body, media_type=EVENT_STREAM)


def download(output_path: str, *, header_only: bool = False) -> StreamCall:
    """Download an output video, or only its 20-byte header; the answer is binary."""
    # No compression: it would cost the server far more than the saved bytes are worth.
    headers = {"Accept-Encoding": "identity"}
    if header_only:
        headers["Range"] = f"bytes=0-{VIDEO_HEADER_BYTES - 1}"
    params = {"path": output_path}
    return StreamCall("GET", "/api/v1/generate/download", params, headers, media_type=BINARY)


def delete(name: str) -> AnswerCall[None]:
    """Delete a stored file; the answer has no body."""
    return AnswerCall("DELETE", f"/api/v1/files/{quote(name, safe='')}", read=_no_body)


def find_pipeline(id: str, pipelines: Sequence[PipelineInfo]) -> PipelineInfo:
    """The pipeline with this id.

    Raises:
        UnknownPipeline: there is none; the message lists those there are.
    """
    for pipeline in pipelines:
        if pipeline.id == id:
            return pipeline
    names = ", ".join(pipeline.id for pipeline in pipelines) or "none"
    raise UnknownPipeline(f"there is no pipeline {id!r}; this server has: {names}")


def _binary(num_bytes: int | None) -> dict[str, str]:
    headers = {"Content-Type": BINARY}
    if num_bytes is not None:
        # So that the server can refuse a body that is too large before it reads it.
        headers["Content-Length"] = str(num_bytes)
    return headers


def _no_body(body: bytes) -> None:
    """Check that there is no body, as there would be in the login page of a network.

    Raises:
        ValueError: there is one.
    """
    if body:
        raise ValueError("the answer has a body")
