"""Every error that a client of Filmstrip can meet.

    FilmstripError
    ├── BadRequest              400  bad_request
    │   ├── BadHeader           400  bad_header
    │   ├── BadJson             400  bad_json
    │   ├── EmptyBody           400  empty_body
    │   ├── BadImage            400  bad_image
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
    ├── PreconditionFailed      412  precondition_failed
    ├── TooLarge                413  too_large
    ├── UnsupportedMediaType    415  unsupported_media_type
    ├── RangeNotSatisfiable     416  range_not_satisfiable
    ├── ExpectationFailed       417  expectation_failed
    ├── InvalidField            422  invalid_field
    ├── HeadTooLarge            431  head_too_large
    ├── ClientGone              499  client_gone
    ├── InternalError           500  internal_error
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
    │   │   └── UntrustedCertificate  the server's TLS certificate is not trusted
    │   └── TimedOut                  nothing came for longer than the timeout
    └── UnexpectedAnswer              the answer is not Filmstrip's: a proxy, another program, another version

A FilmstripError is the server's own answer; a ClientError is what goes wrong on the way to it.

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
    """The request cannot be understood."""

    code = "bad_request"
    status = 400


class BadHeader(BadRequest):
    """A header is missing or holds a value outside its limits."""

    code = "bad_header"


class BadJson(BadRequest):
    """The body is not JSON."""

    code = "bad_json"


class EmptyBody(BadRequest):
    """A body was needed and none came."""

    code = "empty_body"


class BadImage(BadRequest):
    """The bytes are not a PNG, JPEG or WebP image within the limits."""

    code = "bad_image"


class SizeMismatch(BadRequest):
    """The body is shorter or longer than its headers say."""

    code = "size_mismatch"


class Unauthorized(FilmstripError):
    """The server wants a key, and none or a wrong one was sent."""

    code = "unauthorized"
    status = 401
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


class ForbiddenHost(FilmstripError):
    """The server is for its own machine alone, and the request names another host."""

    code = "forbidden_host"
    status = 403


class ForbiddenOrigin(FilmstripError):
    """A web page of another origin may not post here."""

    code = "forbidden_origin"
    status = 403


class NotFound(FilmstripError):
    """Nothing is there."""

    code = "not_found"
    status = 404


class UnknownPath(NotFound):
    """A name that this server did not make, or whose file has expired."""

    code = "unknown_path"


class UnknownPipeline(NotFound):
    """No such pipeline in the model repository."""

    code = "unknown_pipeline"


class MethodNotAllowed(FilmstripError):
    """The address exists, this method on it does not."""

    code = "method_not_allowed"
    status = 405


class SlowBody(FilmstripError):
    """The body stopped arriving."""

    code = "slow_body"
    status = 408


class Busy(FilmstripError):
    """Another generation runs."""

    code = "busy"
    status = 409


class InUse(FilmstripError):
    """A generation or a download uses the file."""

    code = "in_use"
    status = 409


class PreconditionFailed(FilmstripError):
    """The file is not the one that `If-Match` names."""

    code = "precondition_failed"
    status = 412


class TooLarge(FilmstripError):
    """The body is over its limit."""

    code = "too_large"
    status = 413


class UnsupportedMediaType(FilmstripError):
    """The body is compressed or is a form, and the endpoint takes neither."""

    code = "unsupported_media_type"
    status = 415


class RangeNotSatisfiable(FilmstripError):
    """The range asked for lies outside the file."""

    code = "range_not_satisfiable"
    status = 416


class ExpectationFailed(FilmstripError):
    """The request's `Expect` header asks for something other than 100-continue."""

    code = "expectation_failed"
    status = 417


class InvalidField(FilmstripError):
    """A field of the request holds a value that cannot be served."""

    code = "invalid_field"
    status = 422


class HeadTooLarge(FilmstripError):
    """The request's line and headers are over their limit."""

    code = "head_too_large"
    status = 431


class ClientGone(FilmstripError):
    """The client went away before its generation ended; seen in logs and metrics alone."""

    code = "client_gone"
    status = 499


class InternalError(FilmstripError):
    """A fault of the server's own; the log has the traceback."""

    code = "internal_error"


class ModelError(FilmstripError):
    """The model could not make a chunk."""

    code = "model_error"


class BadModelOutput(ModelError):
    """The model answered with frames of another shape than asked for."""

    code = "bad_model_output"


class ChunkTimeout(ModelError):
    """A chunk took longer than its deadline."""

    code = "chunk_timeout"


class ModelDied(ModelError):
    """The model's process has ended; it is loaded anew for the next generation."""

    code = "model_died"


class SequenceLost(ModelError):
    """Triton no longer knows the sequence: it was restarted, or the sequence sat idle too long."""

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
    """Every connection that the server may have open is busy with a request."""

    code = "too_many_connections"
    status = 503
    headers: Mapping[str, str] = {"Retry-After": "1"}


class TooManyDownloads(FilmstripError):
    """As many downloads run as the server serves at once."""

    code = "too_many_downloads"
    status = 503
    headers: Mapping[str, str] = {"Retry-After": "5"}


class Overloaded(FilmstripError):
    """The server has no memory left for another request; the same request will do a moment later."""

    code = "overloaded"
    status = 503
    headers: Mapping[str, str] = {"Retry-After": "1"}


class StorageFull(FilmstripError):
    """The request would take the stored files over their limits."""

    code = "storage_full"
    status = 507


class DiskFull(StorageFull):
    """The disk itself is full."""

    code = "disk_full"


# -- What goes wrong on the way to the server ------------------------------------------------------------------


class ClientError(Exception):
    """Base of the errors of a client; the message is one readable line."""


class ConnectionFailed(ClientError):
    """The server cannot be reached, or the connection broke before the answer was whole."""


class ServerUnreachable(ConnectionFailed):
    """No connection could be made: nothing listens there, the host is unknown, or there is no way to it."""


class UntrustedCertificate(ServerUnreachable):
    """The server's TLS certificate is not trusted; `verify` of the clients names the authority that signed it."""


class TimedOut(ConnectionFailed):
    """Nothing came, or nothing was taken, for longer than the timeout."""


class UnexpectedAnswer(ClientError):
    """The answer is not Filmstrip's; the message says what it may be.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


def counted(number: int, noun: str) -> str:
    """A number of things, for a message: 1 frame, 2 frames."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_WIRE_MARK = "filmstrip-error:"


def _tree(root: type[FilmstripError]) -> dict[str, type[FilmstripError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


ERRORS: dict[str, type[FilmstripError]] = _tree(FilmstripError)
"""Every error class by its code."""


def from_wire(text: str) -> FilmstripError | None:
    """The error that a model of ours put into Triton's message, or None for any other text."""
    mark = text.find(_WIRE_MARK)
    if mark < 0:
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(text[mark + len(_WIRE_MARK) :])
        return ERRORS.get(fields["code"], ModelError)(fields["message"], fields["field"])
    except (ValueError, KeyError, TypeError):
        return None
