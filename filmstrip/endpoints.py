"""The server's endpoints: what a call of each sends and how its answer is read. No I/O: both clients share it."""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from filmstrip.errors import FilmstripError, MethodNotAllowed, NotFound, UnexpectedAnswer, UnknownPipeline
from filmstrip.http_errors import read_error, unexpected
from filmstrip.models import (
    CancelAnswer,
    DryRunPlan,
    Generation,
    GenerationPage,
    Health,
    LoadAnswer,
    LoadStatus,
    PipelineInfo,
    PipelineList,
    UploadedAsset,
    UploadedData,
    UploadedVideo,
)
from filmstrip.request_fields import ID_PATTERN, KEY_PATTERN
from filmstrip.wire import VIDEO_HEADER_BYTES, BlobBuilder, VideoShape

EVENT_STREAM = "text/event-stream"
BINARY = "application/octet-stream"
FILE_FORMATS = {
    "mp4": ("video.mp4", "video/mp4"),
    "webm": ("video.webm", "video/webm"),
    "gif": ("video.gif", "image/gif"),
    "poster": ("poster.png", "image/png"),
    "contact-sheet": ("contact-sheet.png", "image/png"),
}
"""The files that the server makes of a generation: their names in its URL and their media types, by format."""
_GENERATIONS = "/api/v1/generations"
GENERATION_ID = re.compile(ID_PATTERN)
_IDEMPOTENCY_KEY = re.compile(KEY_PATTERN)
_FOLLOW = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
_NOT_THERE = (404, 405, 501)
_DECODING_S = 300.0
_ENCODING_S = 900.0

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
        silence_s: longest silence until the answer, in place of the client's timeout.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    silence_s: float | None = None

    def build(self, http: httpx.Client | httpx.AsyncClient, content: Any = None) -> httpx.Request:
        """The request, to be sent by `http`; `content` is a body that is not JSON."""
        timeout = http.timeout
        if self.silence_s is not None:
            connect = self.silence_s if timeout.connect is None else min(timeout.connect, self.silence_s)
            timeout = httpx.Timeout(connect=connect, read=self.silence_s, write=timeout.write, pool=timeout.pool)
        return http.build_request(
            self.method,
            self.path,
            params=self.params,
            headers=self.headers,
            json=self.json,
            content=content,
            timeout=timeout,
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


def upload_file(num_bytes: int, **query: object) -> AnswerCall[UploadedVideo]:
    """Upload a video file, which the server decodes; `query` selects a part and a size, None counts as not set."""
    params = {name: _as_text(value) for name, value in query.items() if value is not None}
    # The bytes decide about the format, whatever the type says.
    headers = {"Content-Type": "video/mp4", "Content-Length": str(num_bytes)}
    read = UploadedVideo.model_validate_json
    return AnswerCall(
        "POST", "/api/v1/generate/upload", params=params, headers=headers, read=read, silence_s=_DECODING_S
    )


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
    body = request_body(request, fields)
    return StreamCall("POST", "/api/v1/generate", headers=_FOLLOW, json=body, media_type=EVENT_STREAM)


def request_body(request: Mapping[str, Any] | None, fields: Mapping[str, object]) -> dict[str, Any]:
    """A GenerateRequest from its fields as a mapping and as keywords, which take precedence; see `generate`."""
    return {**(request or {}), **{name: value for name, value in fields.items() if value is not None}}


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


# -- Generations with an id --------------------------------------------------------------------------------------


def new_id() -> str:
    """An id that no other generation has. The client makes it, so that a request can be repeated safely."""
    return uuid.uuid4().hex


def submit(body: Mapping[str, Any], id: str | None, idempotency_key: str | None) -> AnswerCall[Generation]:
    """Start a generation under an id of the client's, or under the server's id for an idempotency key.

    Raises:
        ValueError: the id or the key cannot be sent.
    """
    read = Generation.model_validate_json
    if idempotency_key is None:
        return AnswerCall("PUT", _generation(id or new_id()), json=body, read=read)
    if id is not None:
        raise ValueError("give an id or an idempotency key, not both")
    if not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise ValueError("an idempotency key is 1 to 255 printable ASCII characters")
    return AnswerCall("POST", _GENERATIONS, headers={"Idempotency-Key": idempotency_key}, json=body, read=read)


def submit_and_follow(body: Mapping[str, Any], id: str) -> StreamCall:
    """Start a generation; the answer is its stream of events."""
    return StreamCall("PUT", _generation(id), headers=_FOLLOW, json=body, media_type=EVENT_STREAM)


def submission_body(
    body: Mapping[str, Any], on_disconnect: str | None, previews: Mapping[str, int] | None
) -> dict[str, Any]:
    """The body that starts a generation with an id."""
    extra: dict[str, Any] = {"on_disconnect": on_disconnect, "previews": previews}
    return {**body, **{name: value for name, value in extra.items() if value is not None}}


def generation_events(id: str, after: int) -> StreamCall:
    """Follow the events of a generation that come after a number."""
    headers = _FOLLOW | ({"Last-Event-ID": str(after)} if after else {})
    return StreamCall("GET", f"{_generation(id)}/events", headers=headers, media_type=EVENT_STREAM)


def generation(id: str) -> AnswerCall[Generation]:
    """The state of a generation."""
    return AnswerCall("GET", _generation(id), read=Generation.model_validate_json)


def generation_page(state: str | None, limit: int, after: str | None) -> AnswerCall[GenerationPage]:
    """Some of the client's generations."""
    query = {"limit": str(limit), "state": state, "after": after}
    params = {name: value for name, value in query.items() if value is not None}
    return AnswerCall("GET", _GENERATIONS, params=params, read=GenerationPage.model_validate_json)


def cancel_generation(id: str) -> AnswerCall[CancelAnswer]:
    """Cancel a generation."""
    return AnswerCall("POST", f"{_generation(id)}/cancel", read=CancelAnswer.model_validate_json)


def delete_generation(id: str, silence_s: float | None = None) -> AnswerCall[None]:
    """End a generation and remove it with its files; the answer has no body and comes when its slot is free."""
    return AnswerCall("DELETE", _generation(id), read=_no_body, silence_s=silence_s)


def generation_frames(id: str, start: int, stop: int | None) -> StreamCall:
    """Download frames that a generation has made so far."""
    params = {"from": str(start)} | ({} if stop is None else {"to": str(stop)})
    headers = {"Accept-Encoding": "identity"}
    return StreamCall("GET", f"{_generation(id)}/frames", params, headers, media_type=BINARY)


def generation_file(id: str, format: str, **query: object) -> StreamCall:
    """Download a generation as a video file or an image; the server encodes it first.

    Raises:
        ValueError: there is no such format.
    """
    if format not in FILE_FORMATS:
        raise ValueError(f"{format!r} is not one of {', '.join(FILE_FORMATS)}")
    name, media_type = FILE_FORMATS[format]
    params = {key: _as_text(value) for key, value in query.items() if value is not None}
    headers = {"Accept-Encoding": "identity"}
    path = f"{_generation(id)}/{name}"
    return StreamCall("GET", path, params, headers, media_type=media_type, silence_s=_ENCODING_S)


def file_format(path: str | PurePath) -> str:
    """The format that the suffix of a file's name selects.

    Raises:
        ValueError: no format has this suffix.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix == ".png":
        return "contact-sheet"
    if suffix.removeprefix(".") in FILE_FORMATS:
        return suffix.removeprefix(".")
    raise ValueError(f"{str(path)!r} must end in .mp4, .webm, .gif or .png, or name the format")


def dry_run(body: Mapping[str, Any], uploads: Mapping[str, Any] | None) -> AnswerCall[DryRunPlan]:
    """Plan a request without running it; `uploads` stands for files that are not uploaded yet."""
    if uploads is not None:
        body = {**body, "uploads": uploads}
    return AnswerCall("POST", _GENERATIONS, params={"dry_run": "1"}, json=body, read=DryRunPlan.model_validate_json)


def is_unsupported(error: Exception) -> bool:
    """Whether the answer to a new generation means that this address does not have generations with an id.

    An older server answers `not_found`; a proxy that forwards only certain paths or methods answers 404, 405 or 501
    itself. A pipeline or a file that is missing has a code of its own.
    """
    if isinstance(error, FilmstripError):
        return type(error) in (NotFound, MethodNotAllowed)
    return isinstance(error, UnexpectedAnswer) and error.status in _NOT_THERE


def _generation(id: str) -> str:
    if not GENERATION_ID.fullmatch(id):
        raise ValueError(f"{id!r} is not the id of a generation: 1 to 64 letters, digits, - and _")
    return f"{_GENERATIONS}/{id}"


def _as_text(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


# -- Pipelines and bodies ----------------------------------------------------------------------------------------


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
