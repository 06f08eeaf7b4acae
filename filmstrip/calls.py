"""The endpoints as values: what each call sends and how its answer is read. No I/O; both clients share it."""

import ipaddress
import json
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import httpx_sse

from filmstrip import __version__, environment, foreign_answers
from filmstrip.client_errors import (
    ClientError,
    ConnectionFailed,
    ServerUnreachable,
    TimedOut,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.errors import ERRORS, FilmstripError, UnknownPipeline
from filmstrip.events import read_shape
from filmstrip.geometry import VIDEO_HEADER_BYTES, VideoShape

TIMEOUT_S = 60.0
"""Longest silence of a connection, streams included: the server comments every 15 s at the latest."""
CONNECT_TIMEOUT_S = 10.0

EVENT_STREAM = "text/event-stream"
BINARY = "application/octet-stream"

Verify = ssl.SSLContext | str | Path | bool
"""How a server's TLS certificate is checked: a context; or a PEM file, or a folder of them, of trusted authorities."""

_PEM_CERTIFICATE = re.compile(r"-----BEGIN ((?:TRUSTED |X509 )?CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)

_PROXY = re.compile(r"(http|https|all)_proxy", re.IGNORECASE)

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
        stream: media type of an answer that is read as it comes.
    """

    method: str
    path: str
    read: Callable[[Any], AnswerT]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    also_good: frozenset[int] = frozenset()
    stream: str = ""

    def build(self, http: httpx.Client | httpx.AsyncClient, content: Any = None) -> httpx.Request:
        """The request, to be sent by `http`; `content` is the body where it isn't JSON."""
        return http.build_request(
            self.method, self.path, params=self.params, headers=self.headers, json=self.json, content=content
        )

    def answer(self, response: httpx.Response) -> AnswerT:
        """Read an answer, whose body must have been read.

        Raises:
            FilmstripError: the server refused; the class is that of the error's code.
            UnexpectedAnswer: the answer is not Filmstrip's.
        """
        if not (response.is_success or response.status_code in self.also_good):
            raise read_error(response)
        try:
            return self.read(None if response.status_code == httpx.codes.NO_CONTENT else json.loads(response.content))
        except (ValueError, KeyError, TypeError):
            raise unexpected(response) from None

    def is_stream(self, response: httpx.Response) -> bool:
        """Whether an answer is the stream that this call answers with, and not a login page, say."""
        media_type: str = response.headers.get("Content-Type", "")
        return media_type.partition(";")[0].strip().lower() == self.stream


def read_error(response: httpx.Response) -> Exception:
    """The exception that an error answer stands for; one of the server's own keeps its `Retry-After`."""
    try:
        answer = json.loads(response.content)
        code, message, field_name = answer["error"]["code"], answer["error"]["message"], answer["error"].get("field")
    except (ValueError, KeyError, TypeError, AttributeError):
        return unexpected(response)
    if not isinstance(code, str) or not isinstance(message, str) or not isinstance(field_name, str | None):
        return unexpected(response)
    status = response.status_code
    if code not in ERRORS:
        return UnexpectedAnswer(f"{message} ({status} {code})", status)
    error = ERRORS[code](message, field_name)
    if "Retry-After" in response.headers:
        error.headers = {**error.headers, "Retry-After": response.headers["Retry-After"]}
    return error


def unexpected(response: httpx.Response, start: bytes | None = None) -> UnexpectedAnswer:
    """The exception for an answer that is not Filmstrip's; `start` is the start of a body that was not read."""
    body = response.content if start is None else start
    status = response.status_code
    return UnexpectedAnswer(foreign_answers.describe(str(response.url), status, response.headers.get, body), status)


def retry_after_s(error: FilmstripError) -> float | None:
    """Seconds after which the server says to try again; None where it says nothing that makes sense."""
    text = error.headers.get("Retry-After", "").strip()
    try:
        seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@contextmanager
def mapped_errors() -> Iterator[None]:
    """The boundary where httpx's errors become a client's."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(f"{_address(error)}: timed out ({type(error).__name__})") from error
    except httpx_sse.SSEError as error:
        raise UnexpectedAnswer(f"not a stream of events: {error}") from error
    except (httpx.ConnectError, httpx.ProxyError) as error:
        raise _unreachable(error) from error
    except httpx.RequestError as error:
        raise ConnectionFailed(f"{_address(error)}: {_reason(error)}") from error


@contextmanager
def mapped_proxy_errors() -> Iterator[None]:
    """Where a client is made, httpx looks at the proxies of the environment, and fails over those it can't use."""
    try:
        yield
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        names = ", ".join(sorted(name for name, value in os.environ.items() if value and _PROXY.fullmatch(name)))
        raise ServerUnreachable(f"the proxy of the environment ({names}) cannot be used: {error}") from None


def _unreachable(error: httpx.RequestError) -> ServerUnreachable:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UntrustedCertificate(f"{_address(error)}: its certificate is not trusted: {cause.verify_message}")
    if cause is not None and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return ServerUnreachable(f"{_address(error)}: the server does not use TLS; write http:// in the URL")
    if isinstance(error, httpx.ProxyError):
        return ServerUnreachable(f"{_address(error)}: the proxy of the environment refused: {_reason(error)}")
    return ServerUnreachable(f"{_address(error)}: {_reason(error)}")


def _reason(error: httpx.RequestError) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _address(error: httpx.RequestError) -> str:
    try:
        url = error.request.url
    except RuntimeError:  # httpx's way of saying that it knows no request
        return "the server"
    return f"{url.scheme}://{url.netloc.decode()}"


def connection_options(
    base_url: str | None, token: str | None, timeout_s: float, verify: Verify = True
) -> dict[str, Any]:
    """The arguments that httpx's two clients are made with; see `environment.resolve` for the first two.

    Raises:
        ValueError: the URL is not one of an HTTP server, the token cannot be sent, or `verify` names no certificates.
    """
    target = environment.resolve(base_url, token)
    headers = {"User-Agent": f"filmstrip/{__version__}"}
    if target.token is not None:
        headers["Authorization"] = f"Bearer {target.token}"
    return {
        "base_url": target.url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S)),
        "trust_env": not _is_loopback(target.url.host),  # a proxy has no way to this machine's own loopback
        "verify": _checked_certificates(verify),
    }


def _checked_certificates(verify: Verify) -> ssl.SSLContext | bool:
    if isinstance(verify, bool | ssl.SSLContext):
        return verify
    path = Path(verify)
    try:
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
        certificates = [found[0] for found in _PEM_CERTIFICATE.finditer(text)]
        if certificates:
            # Those alone: OpenSSL takes only ASCII here, which comments between them need not be.
            return ssl.create_default_context(cadata="\n".join(certificates))
    except ssl.SSLError:
        pass
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    raise ValueError(f"{path}: holds no certificate in PEM form")


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
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    return Call("POST", "/api/v1/generate", _no_json, headers=headers, json=dict(request), stream=EVENT_STREAM)


def download(output_path: str, *, header_only: bool = False) -> Call[None]:
    """GET an output video, or its 20-byte header alone; the answer is binary."""
    # Identity: compressing raw video would cost the server far more than the bytes saved.
    headers = {"Accept-Encoding": "identity"}
    if header_only:
        headers["Range"] = f"bytes=0-{VIDEO_HEADER_BYTES - 1}"
    params = {"path": output_path}
    return Call("GET", "/api/v1/generate/download", _no_json, params, headers, stream=BINARY)


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
    headers = {"Content-Type": BINARY}
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
