"""The endpoints as values: what each call sends and how its answer is read. No I/O; both clients share it."""

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import httpx_sse

from filmstrip import __version__
from filmstrip.client_errors import ClientError, ConnectionFailed, TimedOut, UnexpectedAnswer
from filmstrip.errors import ERRORS, UnknownPipeline
from filmstrip.events import read_shape
from filmstrip.geometry import VideoShape

TIMEOUT_S = 60.0
"""Longest silence of a connection, streams included: the server comments every 15 s at the latest."""
CONNECT_TIMEOUT_S = 10.0

_SHOWN_BYTES = 200

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class UploadedVideo:
    """An input video that the server holds: `input_path` goes into the request."""

    input_path: str
    num_frames: int
    shape: VideoShape


@dataclass(frozen=True)
class UploadedData:
    """A blob that the server holds: `data_blob_path` goes into the request."""

    data_blob_path: str
    size_bytes: int


@dataclass(frozen=True)
class Call(Generic[AnswerT]):
    """One call of one endpoint.

    Attributes:
        method: the HTTP method.
        path: from the base URL on.
        read: makes the answer from the JSON of the body.
        params: the query.
        headers: beside those of every call.
        json: the body, where it is JSON.
        also_good: statuses besides 2xx that carry an answer, not an error.
    """

    method: str
    path: str
    read: Callable[[Any], AnswerT]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    also_good: frozenset[int] = frozenset()

    def build(self, http: httpx.Client | httpx.AsyncClient, content: Any = None) -> httpx.Request:
        """The request, to be sent by `http`; `content` is the body where it isn't JSON."""
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, json=self.json, content=content
        )

    def answer(self, status: int, body: bytes) -> AnswerT:
        """Read an answer.

        Raises:
            FilmstripError: the server refused; the class is that of the error's code.
            UnexpectedAnswer: the answer is none of Filmstrip's.
        """
        if not (httpx.codes.is_success(status) or status in self.also_good):
            raise read_error(status, body)
        try:
            return self.read(None if status == httpx.codes.NO_CONTENT else json.loads(body))
        except (ValueError, KeyError, TypeError):
            raise UnexpectedAnswer(f"{self.path} answered {status} with {_shown(body)}", status) from None


def read_error(status: int, body: bytes) -> Exception:
    """The exception that an error answer stands for."""
    try:
        answer = json.loads(body)
        code, message, field_name = answer["error"]["code"], answer["error"]["message"], answer["error"].get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        return UnexpectedAnswer(f"the server answered {status} with {_shown(body)}", status)
    if code in ERRORS:
        return ERRORS[code](message, field_name)
    return UnexpectedAnswer(f"{message} ({status} {code})", status)


def _shown(body: bytes) -> str:
    text = body[:_SHOWN_BYTES].decode(errors="replace").strip()
    return repr(text) if text else "an empty body"


@contextmanager
def mapped_errors() -> Iterator[None]:
    """The boundary where httpx's errors become a client's."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(f"{_address(error)}: timed out ({type(error).__name__})") from error
    except httpx_sse.SSEError as error:
        raise UnexpectedAnswer(f"not a stream of events: {error}") from error
    except httpx.RequestError as error:
        raise ConnectionFailed(f"{_address(error)}: {error or type(error).__name__}") from error


def _address(error: httpx.RequestError) -> str:
    try:
        url = error.request.url
    except RuntimeError:  # httpx's way of saying that it knows no request
        return "the server"
    return f"{url.scheme}://{url.netloc.decode()}"


def connection_options(base_url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    """The arguments that httpx's two clients are made with.

    Raises:
        ValueError: the URL is not one of an HTTP server.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{base_url!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url!r} is not the URL of a server, such as http://127.0.0.1:8000")
    headers = {"User-Agent": f"filmstrip/{__version__}"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
        "trust_env": not _is_loopback(url.host),  # a proxy has no way to this machine's own loopback
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- The calls ----------------------------------------------------------------------------------------------


def upload(shape: VideoShape) -> Call[UploadedVideo]:
    """POST an input video of this shape."""
    headers = {
        "X-Video-Frames": str(shape.frames),
        "X-Video-Height": str(shape.height),
        "X-Video-Width": str(shape.width),
        "X-Video-Channels": str(shape.channels),
        **_binary(shape.num_bytes),
    }
    return Call("POST", "/api/v1/generate/upload", _uploaded_video, headers=headers)


def upload_data(num_bytes: int | None) -> Call[UploadedData]:
    """POST a blob; None where its size is not known beforehand."""
    return Call("POST", "/api/v1/generate/upload-data", _uploaded_data, headers=_binary(num_bytes))


def upload_asset() -> Call[str]:
    """POST an image."""
    return Call("POST", "/api/v1/assets", _text("path"), headers=_binary(None))


def pipelines() -> Call[list[dict[str, Any]]]:
    """GET what the model repository holds."""
    return Call("GET", "/api/v1/pipelines", lambda raw: [dict(pipeline) for pipeline in raw["pipelines"]])


def load(pipeline_ids: str | Sequence[str], load_params: Mapping[str, Any] | None) -> Call[str]:
    """POST that pipelines be loaded."""
    ids = [pipeline_ids] if isinstance(pipeline_ids, str) else list(pipeline_ids)
    body: dict[str, Any] = {"pipeline_ids": ids}
    if load_params is not None:
        body["load_params"] = dict(load_params)
    return Call("POST", "/api/v1/pipeline/load", _text("status"), json=body)


def status() -> Call[dict[str, Any]]:
    """GET how the last load went."""
    return Call("GET", "/api/v1/pipeline/status", _object)


def health() -> Call[dict[str, Any]]:
    """GET whether a generation would be accepted; 503 says no, in the same words."""
    return Call("GET", "/health", _health, also_good=frozenset({503}))


def cancel() -> Call[str]:
    """POST that the generation end after its current chunk."""
    return Call("POST", "/api/v1/generate/cancel", _text("status"))


def generate(request: Mapping[str, Any]) -> Call[None]:
    """POST a generation; the answer is a stream of events."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    return Call("POST", "/api/v1/generate", _no_json, headers=headers, json=dict(request))


def download(output_path: str) -> Call[None]:
    """GET an output video; the answer is binary."""
    # Identity: compressing raw video would cost the server far more than the bytes saved.
    headers = {"Accept-Encoding": "identity"}
    return Call("GET", "/api/v1/generate/download", _no_json, params={"path": output_path}, headers=headers)


def delete(name: str) -> Call[None]:
    """DELETE a stored file; the answer has no body."""
    return Call("DELETE", f"/api/v1/files/{quote(name, safe='')}", lambda _: None)


def request_of(request: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a generation from a dict and keywords; keywords that are None count as not given."""
    return {**(request or {}), **{name: value for name, value in fields.items() if value is not None}}


def pick_pipeline(id: str, known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The pipeline of this id.

    Raises:
        UnknownPipeline: there is none; the message lists those there are.
    """
    for pipeline in known:
        if pipeline.get("id") == id:
            return pipeline
    names = ", ".join(str(pipeline.get("id")) for pipeline in known) or "none"
    raise UnknownPipeline(f"there is no pipeline {id!r}; this server has: {names}")


def _binary(num_bytes: int | None) -> dict[str, str]:
    headers = {"Content-Type": "application/octet-stream"}
    if num_bytes is not None:
        # Known beforehand, so that the server can refuse a body that is too large before it has read it.
        headers["Content-Length"] = str(num_bytes)
    return headers


def _uploaded_video(raw: Any) -> UploadedVideo:
    return UploadedVideo(str(raw["input_path"]), int(raw["num_frames"]), read_shape(raw["shape"]))


def _uploaded_data(raw: Any) -> UploadedData:
    return UploadedData(str(raw["data_blob_path"]), int(raw["size_bytes"]))


def _text(key: str) -> Callable[[Any], str]:
    return lambda raw: str(raw[key])


def _object(raw: Any) -> dict[str, Any]:
    return dict(raw)


def _health(raw: Any) -> dict[str, Any]:
    return {**raw, "status": str(raw["status"])}


def _no_json(raw: Any) -> None:  # noqa: ARG001 - these answers are read as streams
    raise ClientError("this answer is a stream")
