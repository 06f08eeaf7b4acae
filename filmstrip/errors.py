"""Every error that a client of Filmstrip can meet.

    FilmstripError
    ├── BadRequest              400  bad_request
    │   ├── BadHeader           400  bad_header
    │   ├── BadJson             400  bad_json
    │   ├── EmptyBody           400  empty_body
    │   ├── BadImage            400  bad_image
    │   ├── BadVideo            400  bad_video
    │   └── SizeMismatch        400  size_mismatch
    ├── Unauthorized            401  unauthorized
    ├── ForbiddenHost           403  forbidden_host
    ├── ForbiddenOrigin         403  forbidden_origin
    ├── NotFound                404  not_found
    │   ├── UnknownPath         404  unknown_path
    │   └── UnknownPipeline     404  unknown_pipeline
    ├── MethodNotAllowed        405  method_not_allowed
    ├── SlowBody                408  slow_body
    ├── Busy                    409  busy
    ├── InUse                   409  in_use
    ├── IdTaken                 409  id_taken
    ├── NotReady                409  not_ready
    ├── PreconditionFailed      412  precondition_failed
    ├── TooLarge                413  too_large
    ├── UnsupportedMediaType    415  unsupported_media_type
    ├── RangeNotSatisfiable     416  range_not_satisfiable
    ├── ExpectationFailed       417  expectation_failed
    ├── InvalidField            422  invalid_field
    ├── QueueFull               429  queue_full
    ├── TooManyRequests         429  too_many_requests
    ├── HeadTooLarge            431  head_too_large
    ├── ClientGone              499  client_gone
    ├── InternalError           500  internal_error
    ├── Restarted               500  restarted
    ├── ModelError              500  model_error
    │   ├── BadModelOutput      500  bad_model_output
    │   ├── ChunkTimeout        500  chunk_timeout
    │   ├── ModelDied           500  model_died
    │   └── SequenceLost        500  sequence_lost
    ├── TritonUnavailable       503  triton_unavailable
    ├── LoadFailed              503  load_failed
    ├── ShuttingDown            503  shutting_down
    ├── Overloaded              503  overloaded
    ├── TooManyConnections      503  too_many_connections
    ├── TooManyDownloads        503  too_many_downloads
    └── StorageFull             507  storage_full
        └── DiskFull            507  disk_full

    ClientError
    ├── ConnectionFailed              the server cannot be reached, or the connection broke
    │   ├── ServerUnreachable         no connection could be made: refused, unknown host, no route
    │   │   ├── TlsUnsupported        the URL begins with https, and the server does not use TLS
    │   │   └── UntrustedCertificate  the server's TLS certificate is not trusted
    │   ├── TimedOut                  nothing came for longer than the timeout
    │   └── StreamBroken              the connection to a generation broke, and reconnecting failed
    ├── GenerationsUnsupported        the server is too old for generations with an id
    ├── GenerationCancelled           there is no complete video: the generation was cancelled
    └── UnexpectedAnswer              the answer is not Filmstrip's: a proxy, another program, another version

A FilmstripError is the server's answer. A ClientError comes from the client: a failure on the way to the server, or no
video to return.

Foreign errors become one of these at three boundaries: tritonclient's in `frontend.triton`, ours to JSON or
SSE in `frontend.app` and `frontend.generation`, ours to Triton's own error in `filmstrip.runtime.triton_model`.
Messages are written for the client: they name the field and the value, never a path of the server.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar


class FilmstripError(Exception):
    """Base of all errors that reach a client; `code` and `status` are stable, `headers` go with an HTTP answer."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def body(self) -> dict[str, Any]:
        """The JSON body of an error answer, the same for every endpoint."""
        error = {"code": self.code, "message": self.message}
        if self.field is not None:
            error["field"] = self.field
        return {"error": error, "detail": self.message}

    def to_wire(self) -> str:
        """The text that carries this error through Triton, read back by `from_wire`."""
        return _WIRE_MARK + json.dumps({"code": self.code, "message": self.message, "field": self.field})


class BadRequest(FilmstripError):
    """The request is malformed."""

    code = "bad_request"
    status = 400


class BadHeader(BadRequest):
    """A header is missing or out of range."""

    code = "bad_header"


class BadJson(BadRequest):
    """The body is not JSON."""

    code = "bad_json"


class EmptyBody(BadRequest):
    """The request has no body, and needs one."""

    code = "empty_body"


class BadImage(BadRequest):
    """The file is not a PNG, JPEG or WebP image, or exceeds the limits."""

    code = "bad_image"


class BadVideo(BadRequest):
    """The bytes are not a video file within the limits."""

    code = "bad_video"


class SizeMismatch(BadRequest):
    """The body is shorter or longer than its headers say."""

    code = "size_mismatch"


class Unauthorized(FilmstripError):
    """The API key is missing or invalid."""

    code = "unauthorized"
    status = 401
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class ForbiddenHost(FilmstripError):
    """The server only accepts requests from its own machine, and the request names another host."""

    code = "forbidden_host"
    status = 403


class ForbiddenOrigin(FilmstripError):
    """Web pages of other origins may not send requests."""

    code = "forbidden_origin"
    status = 403


class NotFound(FilmstripError):
    """There is nothing at this address."""

    code = "not_found"
    status = 404


class UnknownPath(NotFound):
    """The server has no file of this name, or it has expired."""

    code = "unknown_path"


class UnknownPipeline(NotFound):
    """No such pipeline in the model repository."""

    code = "unknown_pipeline"


class MethodNotAllowed(FilmstripError):
    """The address does not support this method."""

    code = "method_not_allowed"
    status = 405


class SlowBody(FilmstripError):
    """The body stopped arriving, or arrives too slowly."""

    code = "slow_body"
    status = 408


class Busy(FilmstripError):
    """Another generation is running."""

    code = "busy"
    status = 409


class InUse(FilmstripError):
    """A generation or a download uses the file."""

    code = "in_use"
    status = 409


class IdTaken(FilmstripError):
    """The client has a generation of this id or idempotency key, with another request."""

    code = "id_taken"
    status = 409


class NotReady(FilmstripError):
    """The generation has not made yet what was asked for."""

    code = "not_ready"
    status = 409


class PreconditionFailed(FilmstripError):
    """The file is not the one that `If-Match` names."""

    code = "precondition_failed"
    status = 412


class TooLarge(FilmstripError):
    """The body exceeds its limit."""

    code = "too_large"
    status = 413


class UnsupportedMediaType(FilmstripError):
    """The body is compressed or a form, and the endpoint accepts neither."""

    code = "unsupported_media_type"
    status = 415


class RangeNotSatisfiable(FilmstripError):
    """The requested range is outside the file."""

    code = "range_not_satisfiable"
    status = 416


class ExpectationFailed(FilmstripError):
    """The request's `Expect` header asks for something other than 100-continue."""

    code = "expectation_failed"
    status = 417


class InvalidField(FilmstripError):
    """A field of the request has an invalid or unsupported value."""

    code = "invalid_field"
    status = 422


class QueueFull(FilmstripError):
    """As many generations wait as may; try again after `Retry-After` seconds."""

    code = "queue_full"
    status = 429


class TooManyRequests(FilmstripError):
    """The client sends more requests of this kind than it may; try again after `Retry-After` seconds."""

    code = "too_many_requests"
    status = 429


class HeadTooLarge(FilmstripError):
    """The request line and headers exceed their limit."""

    code = "head_too_large"
    status = 431


class ClientGone(FilmstripError):
    """The client disconnected before its generation ended, or deleted it."""

    code = "client_gone"
    status = 499


class InternalError(FilmstripError):
    """A bug in the server; its log has the traceback."""

    code = "internal_error"


class Restarted(FilmstripError):
    """The server was restarted while the generation ran."""

    code = "restarted"


class ModelError(FilmstripError):
    """The model could not generate a chunk."""

    code = "model_error"


class BadModelOutput(ModelError):
    """The model returned frames of the wrong shape."""

    code = "bad_model_output"


class ChunkTimeout(ModelError):
    """A chunk took longer than its deadline."""

    code = "chunk_timeout"


class ModelDied(ModelError):
    """The model's process has ended; it is reloaded for the next generation."""

    code = "model_died"


class SequenceLost(ModelError):
    """Triton no longer has the sequence: it was restarted, or the sequence was idle for too long."""

    code = "sequence_lost"


class TritonUnavailable(FilmstripError):
    """Triton does not answer, or is not ready."""

    code = "triton_unavailable"
    status = 503


class LoadFailed(FilmstripError):
    """Triton could not load the pipeline's model."""

    code = "load_failed"
    status = 503


class ShuttingDown(FilmstripError):
    """The server is stopping."""

    code = "shutting_down"
    status = 503


class TooManyConnections(FilmstripError):
    """All of the connections that the server may keep open are busy."""

    code = "too_many_connections"
    status = 503
    headers: Mapping[str, str] = {"Retry-After": "1"}


class TooManyDownloads(FilmstripError):
    """The server already serves as many downloads as it can."""

    code = "too_many_downloads"
    status = 503
    headers: Mapping[str, str] = {"Retry-After": "5"}


class Overloaded(FilmstripError):
    """The server has no memory for another request at the moment."""

    code = "overloaded"
    status = 503
    headers: Mapping[str, str] = {"Retry-After": "1"}


class StorageFull(FilmstripError):
    """The request would exceed the limits on stored files."""

    code = "storage_full"
    status = 507


class DiskFull(StorageFull):
    """The disk itself is full."""

    code = "disk_full"


# -- Errors of the client ---------------------------------------------------------------------------------------


class ClientError(Exception):
    """Base of the errors of a client; the message is one readable line."""


class ConnectionFailed(ClientError):
    """The server cannot be reached, or the connection broke before the answer was complete."""


class ServerUnreachable(ConnectionFailed):
    """No connection could be made: nothing listens there, or the host is unknown or unreachable."""


class TlsUnsupported(ServerUnreachable):
    """The URL begins with https, and the server does not use TLS."""


class UntrustedCertificate(ServerUnreachable):
    """The server's TLS certificate is not trusted; `verify` of the clients names the authority that signed it."""


class TimedOut(ConnectionFailed):
    """Nothing was received or sent for longer than the timeout."""


class StreamBroken(ConnectionFailed):
    """The connection to a generation broke, and reconnecting failed; the generation may go on without its client.

    Attributes:
        id: of the generation, to attach to it later.
        after: number of the last event that was received.
    """

    def __init__(self, id: str, after: int, num_attempts: int, reason: str) -> None:
        tried = f", and {counted(num_attempts, 'attempt')} to reconnect failed" if num_attempts else ""
        super().__init__(f"lost the connection to generation {id} after event {after}{tried}: {reason}")
        self.id = id
        self.after = after


class GenerationsUnsupported(ClientError):
    """The server does not have /api/v1/generations: it is older, or a proxy in front of it does not forward them."""


class GenerationCancelled(ClientError):
    """The generation was cancelled, so there is no complete video.

    Attributes:
        num_frames: pixel frames generated before.
        output_path: where these can be downloaded; None if there are none.
    """

    def __init__(self, num_frames: int, output_path: str | None) -> None:
        super().__init__(f"the generation was cancelled after {counted(num_frames, 'frame')}")
        self.num_frames = num_frames
        self.output_path = output_path


class UnexpectedAnswer(ClientError):
    """The answer is not Filmstrip's; the message says what it may be.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 frame, 2 frames."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_WIRE_MARK = "filmstrip-error:"


def _by_code(root: type[FilmstripError]) -> dict[str, type[FilmstripError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _by_code(child)
    return found


ERRORS: dict[str, type[FilmstripError]] = _by_code(FilmstripError)
"""Every error class by its code."""


def from_wire(text: str) -> FilmstripError | None:
    """The error that one of our models put into Triton's message; None for any other text."""
    mark = text.find(_WIRE_MARK)
    if mark < 0:
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(text[mark + len(_WIRE_MARK) :])
        return ERRORS.get(fields["code"], ModelError)(fields["message"], fields["field"])
    except (ValueError, KeyError, TypeError):
        return None
