"""Downloads: whole, in ranges, broken off, too late; and the questions that only look."""

from benchmarks.soak.client import Client, Held
from benchmarks.soak.judge import wrong_video
from filmstrip.wire import VIDEO_HEADER_BYTES

DOWNLOAD = "/api/v1/generate/download"


def fetch(client: Client, kind: str, output: Held) -> None:
    """Download an output and compare it; what only its shape is known of is remembered."""
    answer = client.ask(kind, "GET", DOWNLOAD, {200}, files=[output], params={"path": output.name})
    if answer is None or answer.status_code != 200:
        return
    frames = None if output.content is None or isinstance(output.content, bytes) else output.content
    wrong = wrong_video(answer.content, output.shape, frames)
    if wrong is None and isinstance(output.content, bytes) and output.content != answer.content:
        wrong = "another content than the last time"
    if wrong is not None:
        client.judge.fail(kind, f"{output.name}, made by {output.made_by}", wrong)
    output.content = answer.content


# -- Actions ------------------------------------------------------------------------------------------------


def whole(client: Client) -> None:
    """All of a video."""
    output = client.any_of(client.outputs)
    if output is not None:
        fetch(client, "whole_download", output)


def in_ranges(client: Client) -> None:
    """One range of a video."""
    output = client.any_of(client.outputs)
    if output is None or not isinstance(output.content, bytes):
        return
    size = len(output.content)
    start = client.random.randrange(size)
    stop = client.random.randint(start + 1, size)
    text, expected = client.random.choice(
        [
            (f"bytes={start}-{stop - 1}", output.content[start:stop]),
            (f"bytes={start}-", output.content[start:]),
            (f"bytes=-{size - start}", output.content[start:]),
            ("bytes=0-0,5-9", output.content),
        ]
    )
    answer = client.ask(
        "range", "GET", DOWNLOAD, {200, 206}, files=[output], params={"path": output.name}, headers={"Range": text}
    )
    if answer is not None and answer.status_code in {200, 206} and answer.content != expected:
        client.judge.fail("range", f"{output.name} {text}", f"{len(answer.content)} other bytes")


def head(client: Client) -> None:
    """The headers of a video."""
    output = client.any_of(client.outputs)
    if output is None:
        return
    answer = client.ask("head", "HEAD", DOWNLOAD, {200}, files=[output], params={"path": output.name})
    if answer is None or answer.status_code != 200:
        return
    frames, height, width, channels = output.shape
    size = VIDEO_HEADER_BYTES + frames * height * width * channels
    if answer.content or answer.headers["Content-Length"] != str(size):
        client.judge.fail("head", output.name, f"{dict(answer.headers)}, expected {size} bytes")


def broken_off(client: Client) -> None:
    """A download whose client goes away."""
    output = client.any_of(client.outputs)
    if output is None:
        return
    with client.http.stream("GET", DOWNLOAD, params={"path": output.name}) as answer:
        client.judge.count(client.judge.statuses, answer.status_code)
        next(answer.iter_raw(), b"")


def look(client: Client) -> None:
    """What others look at while generations run."""
    path = client.random.choice(
        ["/health", "/api/v1/pipelines", "/api/v1/pipeline/status", "/metrics", "/openapi.json", "/docs"]
    )
    answer = client.ask("look", "GET", path, {200})
    if answer is not None and answer.status_code == 200 and not answer.content:
        client.judge.fail("look", path, "nothing")


def load(client: Client) -> None:
    """What other clients of this API do first."""
    wanted = {"pipeline_ids": [client.random.choice(["probe", "gray", "scribble"])], "load_params": {"a": [1, None]}}
    client.ask("load", "POST", "/api/v1/pipeline/load", {200}, json=wanted)


def cancel(client: Client) -> None:
    """A cancel, whoever's generation it meets."""
    answer = client.ask("cancel", "POST", "/api/v1/generate/cancel", {200})
    if answer is not None and answer.json()["status"] not in {"cancelling", "idle"}:
        client.judge.fail("cancel", "", answer.text)
