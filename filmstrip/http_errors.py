"""How error answers, answers of other programs and httpx's exceptions become the errors of `filmstrip.errors`."""

import math
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import httpx
import httpx_sse
from pydantic import ValidationError

from filmstrip import foreign_answers
from filmstrip.errors import (
    ERRORS,
    ConnectionFailed,
    FilmstripError,
    ServerUnreachable,
    TimedOut,
    TlsUnsupported,
    UnexpectedAnswer,
    UntrustedCertificate,
)
from filmstrip.models import ErrorAnswer

_PROXY = re.compile(r"(http|https|all)_proxy", re.IGNORECASE)


def read_error(response: httpx.Response) -> Exception:
    """The exception that an error answer stands for; one of the server's own keeps its `Retry-After`."""
    try:
        detail = ErrorAnswer.model_validate_json(response.content).error
    except ValidationError:
        return unexpected(response)
    status = response.status_code
    if detail.code not in ERRORS:
        return UnexpectedAnswer(f"{detail.message} ({status} {detail.code})", status)
    error = ERRORS[detail.code](detail.message, detail.field)
    if "Retry-After" in response.headers:
        error.headers = {**error.headers, "Retry-After": response.headers["Retry-After"]}
    return error


def unexpected(response: httpx.Response, start: bytes | None = None) -> UnexpectedAnswer:
    """The exception for an answer that is not Filmstrip's; `start` is the beginning of a body that was not read."""
    body = response.content if start is None else start
    status = response.status_code
    return UnexpectedAnswer(foreign_answers.describe(str(response.url), status, response.headers.get, body), status)


def retry_after_s(error: FilmstripError) -> float | None:
    """Seconds after which the server asks to try again; None if it does not say, or makes no sense."""
    text = error.headers.get("Retry-After", "").strip()
    try:
        seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Map httpx's errors to ClientErrors; nothing else does."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(f"{_address(error)}: timed out ({type(error).__name__})") from error
    except httpx_sse.SSEError as error:
        raise UnexpectedAnswer(f"not a stream of events: {error}") from error
    except (httpx.ConnectError, httpx.ProxyError) as error:
        raise _unreachable(error) from error
    except httpx.RemoteProtocolError as error:
        raise ConnectionFailed(
            f"{_address(error)}: the server closed the connection before its answer was complete"
        ) from error
    except httpx.RequestError as error:
        raise ConnectionFailed(f"{_address(error)}: {_reason(error)}") from error


@contextmanager
def mapped_proxy_errors() -> Iterator[None]:
    """Map the errors of making a client: httpx then reads the proxies of the environment."""
    try:
        yield
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        names = ", ".join(sorted(name for name, value in os.environ.items() if value and _PROXY.fullmatch(name)))
        raise ServerUnreachable(f"the proxy in the environment ({names}) cannot be used: {error}") from None


def _unreachable(error: httpx.RequestError) -> ServerUnreachable:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return UntrustedCertificate(f"{_address(error)}: its certificate is not trusted: {cause.verify_message}")
    if cause is not None and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return TlsUnsupported(f"{_address(error)}: the server does not use TLS; write http:// in the URL")
    if isinstance(error, httpx.ProxyError):
        return ServerUnreachable(f"{_address(error)}: the proxy in the environment refused: {_reason(error)}")
    return ServerUnreachable(f"{_address(error)}: {_reason(error)}")


def _reason(error: httpx.RequestError) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def _address(error: httpx.RequestError) -> str:
    try:
        url = error.request.url
    except RuntimeError:  # httpx raises this if the error has no request
        return "the server"
    return f"{url.scheme}://{url.netloc.decode()}"
