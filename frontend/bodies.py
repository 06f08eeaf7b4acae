"""Bodies that arrive wrapped, compressed or as a form: refused by their headers, before anything is read."""

from collections.abc import Collection

from quart import Request

from filmstrip.errors import UnsupportedMediaType

BINARY = "application/octet-stream"
JSON = "application/json"


def refuse_wrapped(request: Request, accepted: Collection[str]) -> None:
    """Refuse a body that would be taken for something else than what its sender means.

    The content type is not looked at otherwise: `curl -d` and `--data-binary` say `application/x-www-form-urlencoded`.

    Args:
        request: to be checked.
        accepted: the media types that the endpoint documents, none where it takes no body.

    Raises:
        UnsupportedMediaType: it has a Content-Encoding other than identity, or is a form that is not documented.
    """
    codings = [coding.strip() for coding in ",".join(request.headers.getlist("Content-Encoding")).split(",")]
    for coding in codings:
        if coding.lower() not in ("", "identity"):
            error = UnsupportedMediaType(
                f"Content-Encoding {coding[:40]!a} is not supported; send the body uncompressed", "Content-Encoding"
            )
            error.headers = {"Accept-Encoding": "identity"}
            raise error
    for content_type in request.headers.getlist("Content-Type"):
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type.startswith("multipart/") and media_type not in accepted:
            raise UnsupportedMediaType(
                f"{media_type[:40]!a} is not supported; {_what_to_send(accepted)}", "Content-Type"
            )


def _what_to_send(accepted: Collection[str]) -> str:
    if JSON in accepted:
        return "send JSON as the body, not a form"
    if accepted:
        return "send the raw bytes as the body, not a form (with curl: --data-binary @FILE, not -F)"
    return "this endpoint takes no body"
