"""Uploads: whole, in pieces, slow, broken off and stalled."""

import io
import time
from collections.abc import Iterator

import httpx
from PIL import Image

from benchmarks.soak.client import Client, Held, Left
from benchmarks.soak.judge import Frames

UPLOAD, UPLOAD_DATA, ASSETS = "/api/v1/generate/upload", "/api/v1/generate/upload-data", "/api/v1/assets"


def headers_of(video: Frames) -> dict[str, str]:
    """The X-Video-* headers of a video."""
    return {
        f"X-Video-{side}": str(length)
        for side, length in zip(("Frames", "Height", "Width", "Channels"), video.shape, strict=True)
    }


def send_video(client: Client, kind: str, video: Frames, longest_pause_s: float | None = None) -> Held | None:
    """Upload a video, in pieces where there is a pause; None when it did not fit or failed."""
    data = video.tobytes()
    body = data if longest_pause_s is None else client.pieces(data, longest_pause_s)
    headers = headers_of(video)
    if longest_pause_s is not None and client.random.random() < 0.5:  # else chunked, of unknown length
        headers["Content-Length"] = str(len(data))
    began = time.time()
    answer = client.ask(kind, "POST", UPLOAD, {200, 507}, content=body, headers=headers)
    if answer is None or answer.status_code != 200:
        return None
    told = answer.json()
    if told["shape"] != list(video.shape) or told["num_frames"] != len(video):
        client.judge.fail(kind, headers, f"the answer says {told}")
        return None
    return client.keep(client.videos, Held(told["input_path"], video, began, time.time(), video.shape))


def send_blob(client: Client, kind: str, blob: bytes) -> Held | None:
    """Upload a blob; None when it did not fit or failed."""
    began = time.time()
    answer = client.ask(kind, "POST", UPLOAD_DATA, {200, 507}, content=blob)
    if answer is None or answer.status_code != 200:
        return None
    told = answer.json()
    if told["size_bytes"] != len(blob):
        client.judge.fail(kind, f"{len(blob)} bytes", f"the answer says {told}")
    return Held(told["data_blob_path"], blob, began, time.time())


def random_video(client: Client, *, size: tuple[int, int] | None = None) -> Frames:
    """Noise of a random shape."""
    height, width = size or (client.random.randint(8, 96), client.random.randint(8, 128))
    return client.noise(client.random.randint(1, 40), height, width, 3)


def picture(client: Client) -> bytes:
    """A small PNG, JPEG or WebP file."""
    pixels = client.noise(client.random.randint(1, 64), client.random.randint(1, 64), 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, client.random.choice(["PNG", "JPEG", "WEBP"]))
    return file.getvalue()


# -- Actions ------------------------------------------------------------------------------------------------


def video(client: Client) -> None:
    """A video at once, now and then of a size that the models don't take."""
    if client.random.random() < 0.1:
        data = client.noise(3, 9, 7, client.random.choice([1, 4]))
        client.ask("video", "POST", UPLOAD, {200, 507}, content=data.tobytes(), headers=headers_of(data))
    else:
        send_video(client, "video", random_video(client))


def video_in_pieces(client: Client) -> None:
    """A video in pieces, with pauses."""
    send_video(client, "video_in_pieces", random_video(client), longest_pause_s=0.12)


def blob(client: Client) -> None:
    """Bytes that nobody will use."""
    send_blob(client, "blob", client.random.randbytes(client.random.randint(1, 300_000)))


def asset(client: Client) -> None:
    """An image."""
    data = picture(client)
    began = time.time()
    answer = client.ask("asset", "POST", ASSETS, {200, 507}, content=data)
    if answer is not None and answer.status_code == 200:
        client.keep(client.assets, Held(answer.json()["path"], data, began, time.time()))


def left_upload(client: Client) -> None:
    """An upload whose client goes away within the body."""
    data = random_video(client)
    raw = data.tobytes()
    body = client.pieces(raw, 0.05, leave_at=client.random.randint(0, len(raw) - 1))
    headers = headers_of(data) | {"Content-Length": str(len(raw))}
    try:
        path = client.random.choice([UPLOAD, UPLOAD_DATA])
        client.http.request("POST", path, content=body, headers=headers)
    except (Left, httpx.HTTPError):  # the server may refuse it before it is broken off
        pass


def stalled_upload(client: Client) -> None:
    """An upload that stops for longer than the server waits."""
    raw = client.random.randbytes(10_000)

    def body() -> Iterator[bytes]:
        yield raw[:100]
        time.sleep(client.body_timeout_s + 1)
        yield raw[100:]

    headers = {"Content-Length": str(len(raw))}
    answer = client.ask("stalled_upload", "POST", UPLOAD_DATA, {200, 408, 507}, content=body(), headers=headers)
    # A frontend that was stopped meanwhile may have missed it.
    if answer is not None and answer.status_code == 200 and not client.judge.met_fault(time.monotonic()):
        client.judge.fail("stalled_upload", headers, "200, although it stopped for too long")
